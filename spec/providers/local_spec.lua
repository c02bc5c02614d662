--- The suite of all providers, on sandboxes of this machine.
require "providers.suite" ("local", {
  create = { provider = "local" },
  lacks = { "pause", "resume" },
})

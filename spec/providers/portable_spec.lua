--- The same suite where the provider can do nothing but start programs: what portable.lua does.
require("moonsand").register("bare", require "providers.bare")
require "providers.suite" ("bare", {
  create = { provider = "bare" },
  lacks = { "pause", "resume", "snapshot", "set_lifetime", "url", "background" },
})

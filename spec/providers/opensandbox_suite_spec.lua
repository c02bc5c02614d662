-- What every provider has to do, on OpenSandbox.

local busted = require "busted"
local http = require "moonsand.wire.http"
local opensandbox = require "support.opensandbox"

local fake = opensandbox.start()

describe("moonsand.providers.opensandbox", function()
  after_each(function()
    assert.same({}, fake:violations())
    fake:clear()
  end)

  require "providers.suite" ("opensandbox", {
    create = { provider = "opensandbox", image = "debian:12", base_url = fake.url,
      api_key = fake.key },
    settle = http.close_idle,
  })
end)

busted.subscribe({ "suite", "end" }, function()
  fake:stop()
  return nil, true
end)

-- Ways out through sockets and System V IPC. The oracles listen outside.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("sockets", function()
  helper.deadline(30)
  helper.no_leaks()

  local AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16

  it("reach nothing that listens on the host, by no family", function()
    local name = "moonsand-spec-" .. native.getpid()
    local abstract = assert(native.listen_abstract(name))
    local tcp, port = native.listen_tcp()
    local key = 0x6d730000 + native.getpid()
    local segment = assert(native.shared(key, "the memory of the host"))
    finally(function()
      native.close(abstract)
      native.close(tcp)
      native.unshared(segment)
    end)

    local box = moonsand.assert(moonsand.create())
    local answers = support.answers(support.try(box, "sockets", { name, port, key }))
    box:close()
    local expected = {
      ["raw"] = "EPERM", ["packet by type"] = "EAFNOSUPPORT",
      ["vsock with high bits"] = "EAFNOSUPPORT", ["vsock pair"] = "EAFNOSUPPORT",
      ["netlink route"] = "OK", -- getaddrinfo needs it
      ["netlink netfilter"] = "EAFNOSUPPORT", ["netlink audit"] = "EAFNOSUPPORT",
      ["netlink uevent"] = "EAFNOSUPPORT", ["netlink diag"] = "EAFNOSUPPORT",
      ["abstract stream"] = "ECONNREFUSED",
      ["tcp 127.0.0.1"] = "ECONNREFUSED", ["tcp 127.0.0.2"] = "ECONNREFUSED",
      ["tcp 0.0.0.0"] = "ECONNREFUSED", ["tcp metadata"] = "ENETUNREACH",
      ["tcp private"] = "ENETUNREACH", ["udp dns"] = "ENETUNREACH",
      ["udp broadcast"] = "ENETUNREACH|EACCES", ["udp multicast"] = "ENETUNREACH",
      ["udp ipv6"] = "ENETUNREACH|EADDRNOTAVAIL|EAFNOSUPPORT|EBADF",
      ["own loopback"] = "OK",
      ["shm by key"] = "ENOENT", ["shm by id"] = "EINVAL", ["shm by search"] = "ENOENT",
      ["own shm"] = "OK",
    }
    for family = 0, 46 do
      local open = family == AF_UNIX or family == AF_INET or family == AF_NETLINK
      expected["family " .. family] = open and "OK"
        or family == AF_INET6 and "OK|EAFNOSUPPORT" or "EAFNOSUPPORT"
    end
    support.refused(answers, expected)

    assert.is_false(native.connected(abstract))
    assert.is_false(native.connected(tcp))
    -- The oracles do hear, if somebody comes.
    assert.equal(0, (native.connect_abstract(name)))
    assert.equal(0, (native.connect_tcp(port)))
    assert.is_true(native.connected(abstract))
    assert.is_true(native.connected(tcp))
  end)

  it("shows interfaces, routes and sockets of its own only", function()
    local box = moonsand.assert(moonsand.create())
    local text = moonsand.assert(box:exec [[
      sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev
      sed 1d /proc/net/route; sed 1d /proc/net/tcp; sed 1d /proc/net/unix; sed 1d /proc/net/udp
      sed 1d /proc/net/arp; cat /proc/net/fib_trie 2>/dev/null | grep -c 'universe UNICAST']]).stdout
    box:close()
    assert.equal("lo\n0\n", text)
  end)

  it("does not share System V IPC, POSIX queues and abstract names with another sandbox", function()
    local first = moonsand.assert(moonsand.create())
    local second = moonsand.assert(moonsand.create())
    moonsand.assert(first:exec "ipcmk -M 4096 -p 0666 >/dev/null && ipcmk -Q -p 0666 >/dev/null")
    local mine = moonsand.assert(first:exec "ipcs -m -q | grep -c ^0x").stdout
    local theirs = moonsand.assert(second:exec "ipcs -m -q | grep -c ^0x").stdout
    first:close()
    second:close()
    assert.equal("2\n", mine)
    assert.equal("0\n", theirs)
  end)
end)

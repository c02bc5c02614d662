-- Lets an untrusted tool loose on a directory: copies it in, runs the tool, shows what has changed,
-- and copies the result to another directory. The original cannot be hurt.
--
--     lua5.4 examples/tidy.lua FROM TO [command …]      (in the copy; by default: format all JSON)

local moonsand = require "moonsand"

local FORMAT_JSON = [[
for f in $(find . -name '*.json'); do
  python3 -m json.tool --indent 2 "$f" >/tmp/new && cp /tmp/new "$f"
done]]

local from, to = arg[1], arg[2]
if not to then
  io.stderr:write "usage: tidy.lua FROM TO [command …]\n"
  os.exit(2)
end
local command = arg[3] and { (table.unpack or unpack)(arg, 3) } or FORMAT_JSON

moonsand.with({ limits = { disk = "256M" } }, function(box)
  local given = moonsand.assert(box.files:upload(from, "/workspace/tree"))
  moonsand.assert(box.files:copy("tree", "before"))
  moonsand.assert(box:cd("tree"))
  local r, message = box:exec(command, { timeout = 60, check = true })
  if not r then
    io.stderr:write("the tool failed: ", message, "\n")
    os.exit(1)
  end
  print(("%d files and directories, %d bytes"):format(given.entries, given.bytes))
  print(box:exec("diff -ru ../before . | grep '^[-+]' || echo nothing has changed").stdout)
  moonsand.assert(box.files:download("/workspace/tree", to))
end)

-- Answers four times, and never again.
io.stdout:setvbuf "line"
for turn = 1, 4 do
  io.read()
  print(({ "N", "E", "S", "W" })[turn])
end
while true do end

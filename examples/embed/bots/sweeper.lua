-- Goes along the rows, up and down the arena.
io.stdout:setvbuf "line"
local down = true
for line in io.lines() do
  local width, height, x, y = line:match "(%d+) (%d+) (%d+) (%d+)"
  width, height, x, y = tonumber(width), tonumber(height), tonumber(x), tonumber(y)
  local east = y % 2 == 1
  if east and x < width or not east and x > 1 then
    print(east and "E" or "W")
  else
    down = y == 1 or down and y < height
    print(down and "S" or "N")
  end
end

# Thinks for half a second before each move: far longer than a frame.
while read -r width height x y cx cy rest; do
  sleep 0.5
  if [ "${cx:-$x}" -gt "$x" ]; then echo E
  elif [ "${cx:-$x}" -lt "$x" ]; then echo W
  elif [ "${cy:-$y}" -gt "$y" ]; then echo S
  else echo N; fi
done

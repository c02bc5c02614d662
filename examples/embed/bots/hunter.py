# Goes for the nearest coin.
import sys

for line in sys.stdin:
    width, height, x, y, *rest = map(int, line.split())
    coins = list(zip(rest[::2], rest[1::2]))
    if not coins:
        print(".", flush=True)
        continue
    cx, cy = min(coins, key=lambda c: abs(c[0] - x) + abs(c[1] - y))
    if abs(cx - x) > abs(cy - y):
        print("E" if cx > x else "W", flush=True)
    else:
        print("S" if cy > y else "N", flush=True)

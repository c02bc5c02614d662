#!/bin/sh
# Starts the gateway: examples/openresty/run.sh [PORT, ADDRESS:PORT or unix:PATH]
# At 127.0.0.1:8080 unless told otherwise; Ctrl-C ends it. From the environment, for each client:
# RATE (10 requests a second), PER_CLIENT (4 programs at once), PATIENCE (10 seconds to send or to
# take something); for all of them: AT_ONCE (16 programs).
# Needs what `make` builds and the Debian packages nginx, libnginx-mod-http-lua, lua-cjson,
# lua-nginx-websocket.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
build=${MOONSAND_BUILD:-$project/build}
case $build in /*) ;; *) build=$project/$build ;; esac
listen=${1:-8080}
case $listen in *:*) ;; *) listen=127.0.0.1:$listen ;; esac

command -v nginx >/dev/null || { echo "run.sh: nginx is missing (Debian: nginx)" >&2; exit 1; }
modules=$(nginx -V 2>&1 | sed -n 's/.*--modules-path=\([^ ]*\).*/\1/p')
for file in "$modules/ngx_http_lua_module.so:libnginx-mod-http-lua" \
  "$build/jit/moonsand/core.so:make"; do
  [ -e "${file%:*}" ] || { echo "run.sh: ${file%:*} is missing (${file##*:})" >&2; exit 1; }
done

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/tmp"
user=
if [ "$(id -u)" -eq 0 ]; then # the workers then are nobody in particular, and read copies
  user="user www-data;"
  mkdir "$dir/so"
  cp -R "$here" "$dir/here"
  cp -R "$project/lua" "$dir/lua"
  cp -R "$build/jit/moonsand" "$dir/so"
  chmod 755 "$dir" && chown -R www-data "$dir"
  set -- "$dir/here" "$dir/lua" "$dir/so"
else
  set -- "$here" "$project/lua" "$build/jit"
fi
sed -e "s|@DIR@|$dir|g; s|@USER@|$user|; s|@MODULES@|$modules|g; s|@LISTEN@|$listen|" \
  -e "s|@RATE@|${RATE:-10}|; s|@CLIENT@|${PER_CLIENT:-4}|; s|@ALL@|${AT_ONCE:-16}|" \
  -e "s|@PATIENCE@|${PATIENCE:-10}|" \
  -e "s|@HERE@|$1|g; s|@LUA@|$2|g; s|@SO@|$3|g" "$here/nginx.conf" >"$dir/nginx.conf"
case $listen in
unix:*) echo "the gateway: $listen" ;;
*) echo "the gateway: http://$listen/" ;;
esac
status=0
nginx -p "$dir" -e stderr -c "$dir/nginx.conf" &
pid=$!
trap 'kill -QUIT $pid 2>/dev/null || :' INT TERM
while kill -0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done
exit "$status"

#!/bin/sh
# What a container does, without one: `dsolo web` from an installed wheel, as a user without a name,
# a home or rights, offline, with nothing to write to but one folder in memory; then a question.
#
#     container.sh ENVIRONMENT ROOM PICTURE     (as root; ROOM is a folder of ENVIRONMENT and PICTURE)
set -eu
if [ "${4:-outside}" = outside ]; then exec unshare --net --mount -- "$0" "$1" "$2" "$3" inside; fi

environment=$1 room=$2 picture=$3
ip link set lo up
mount --bind "$room" "$room"
mount -o remount,bind,ro "$room"
mount -t tmpfs -o mode=1777 tmpfs "$room/tmp"
cd "$room"
user="setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all env -i"
set -- PATH=/usr/bin:/bin TMPDIR="$room/tmp" DSOLO_CACHE="$room/tmp/cache" HF_HUB_OFFLINE=1 \
  MPLCONFIGDIR="$room/tmp/matplotlib"

$user "$@" "$environment/bin/dsolo" web --host=0.0.0.0 --port=7860 >"$room/tmp/log" 2>&1 &
server=$!
for _ in $(seq 120); do
  if grep -q 'the page is at' "$room/tmp/log"; then break; fi
  kill -0 $server || { cat "$room/tmp/log"; exit 1; }
  sleep 0.5
done
$user "$@" "$environment/bin/python" -W ignore - "$picture" <<'END'
import sys

from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860", verbose=False)
how = [["grass", "sky", "sand", "arrow"], False, "miniature", *["the preset's own"] * 3]
view = client.predict(handle_file(sys.argv[1]), *how, api_name="/segment")
view = view if isinstance(view, dict) else view[0]
print("answered:", *(f"{one['name']} {one['share']:.3f}" for one in view["classes"]))
print("masks:", client.predict(api_name="/download"))
END
kill -TERM $server
wait $server && echo "ended well"
cat "$room/tmp/log"
echo "left in $room/tmp:" "$(ls "$room/tmp")"
echo "written elsewhere:" "$(find / -xdev -uid 65534 -not -path '/proc/*' 2>/dev/null)"

#!/bin/sh
# First process: finds the root by the sum of its first block, puts a file system in memory over it, and goes there.
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# Without a console nothing is open, and the first files would become standard input and output.
if ! (exec </dev/console >/dev/console) 2>/dev/null; then
    exec </dev/null >/dev/null 2>&1
fi

fail() {
    echo "podvm-init: FAILED at root: $1; the machine goes off"
    poweroff -f
}

root=
for word in $(cat /proc/cmdline); do
    case $word in podvm.root=*) root=${word#podvm.root=} ;; esac
done
test -n "$root" || fail "the kernel's command line names none (podvm.root=)"
for module in $(cat /modules.load); do
    # Those of other hypervisors refuse.
    modprobe -q "$module" 2>/dev/null
done

# Drivers find their disks a while after they are loaded.
device=
tries=0
while test -z "$device"; do
    for disk in /sys/class/block/*; do
        name=/dev/${disk##*/}
        sum=$(dd if="$name" bs=96 count=1 2>/dev/null | sha256sum)
        if test "${sum%% *}" = "$root"; then
            device=$name
            break
        fi
    done
    tries=$((tries + 1))
    test "$tries" -lt 600 || fail "no disk has it within a minute: is its driver one of $(cat /modules.load | tr '\n' ' ')?"
    test -n "$device" || sleep 0.1
done

mkdir -p /lower /upper /root
mount -t squashfs -o ro,nodev,nosuid "$device" /lower || fail "cannot mount $device"
# What is written goes with the machine.
mount -t tmpfs -o mode=0755,nodev,nosuid,size=50% upper /upper || fail "no memory for what is written"
mkdir /upper/upper /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work,nodev,nosuid overlay /root || fail "cannot put memory over the root"
umount /sys
umount /proc
exec switch_root /root /sbin/init

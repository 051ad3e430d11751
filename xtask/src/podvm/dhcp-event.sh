#!/bin/sh
# Run by udhcpc for each event, with the lease in variables. The file below /run/podvm-init tells podvm-init.
told=/run/podvm-init/$interface
say() { echo "dhcp-event: $interface: $*" >&2; }

case $1 in
deconfig)
    rm -f "$told"
    busybox ip -4 addr flush dev "$interface"
    busybox ip link set dev "$interface" up
    ;;
bound | renew)
    if [ -n "$mtu" ] && [ "$mtu" -ge 576 ]; then
        busybox ip link set dev "$interface" mtu "$mtu" || say "the MTU $mtu is refused"
    fi
    # A renewed lease with the same address must not break connections.
    if ! busybox ip -4 addr show dev "$interface" | grep -q " $ip/$mask "; then
        busybox ip -4 addr flush dev "$interface"
        busybox ip addr add "$ip/$mask" broadcast + dev "$interface" || say "the address $ip/$mask is refused"
    fi
    # The first card has the least metric, so its default route wins.
    metric=$((100 + $(cat "/sys/class/net/$interface/ifindex")))
    if [ -n "$staticroutes" ]; then
        # Classless routes replace the router (RFC 3442).
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            via="via $2"
            [ "$2" = 0.0.0.0 ] && via=
            busybox ip route replace "$1" $via dev "$interface" metric "$metric" || say "the route to $1 is refused"
            shift 2
        done
    else
        for gateway in $router; do
            busybox ip route replace default via "$gateway" dev "$interface" metric "$metric" ||
                say "the router $gateway is refused"
            break
        done
    fi
    if [ -n "$dns" ]; then
        {
            [ -n "$domain" ] && echo "search $domain"
            for server in $dns; do echo "nameserver $server"; done
        } >/etc/resolv.conf.new
        mv /etc/resolv.conf.new /etc/resolv.conf
    fi
    echo "$ip/$mask" >"$told.new"
    mv "$told.new" "$told"
    ;;
leasefail | nak)
    say "$1 ${message:-}"
    ;;
esac
exit 0

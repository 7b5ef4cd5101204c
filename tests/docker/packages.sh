#!/bin/sh
# Programs for the tests of containers, where they are missing and can be had: an engine, busybox for images, a registry, Redis.
# Only the programs: their packages' services are not started. Without them the tests of containers say that they are skipped.
set -u
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
missing=
need() { # need PROGRAM PACKAGE
	command -v "$1" >/dev/null || missing="$missing $2"
}
need dockerd docker.io
need iptables iptables
need busybox busybox-static
need docker-registry docker-registry
need redis-server redis-server
need htpasswd apache2-utils
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
		trap 'rm -f "$policy"' EXIT
	fi
	apt-get update -qq >/dev/null
	for package in $missing; do
		# One by one: what one archive does not have is no reason to go without the others.
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 || failed="${failed:-} $package"
	done
	[ -n "${failed:-}" ] || exit 0
	missing=$failed
fi
echo "make: tests of containers need, and skip without:$missing (Debian packages)" >&2

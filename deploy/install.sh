#!/usr/bin/env bash
# Puts a built Windlass where a machine expects it, or takes it away again: `make install`, `make uninstall`, `make deb`.
#
#   deploy/install.sh install|uninstall
#
#   BINARY      the program to install (target/release/windlass)
#   PREFIX      /usr/local: program, manual, completions, documents
#   SYSCONFDIR  /etc: windlass/worker.toml; one that is there is never overwritten and never removed
#   UNITDIR     $PREFIX/lib/systemd/system: windlass-worker.service
#   DESTDIR     goes before all of them: a directory to make a package from
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${BINARY:-target/release/windlass}
prefix=${PREFIX:-/usr/local}
etc=${SYSCONFDIR:-/etc}
units=${UNITDIR:-$prefix/lib/systemd/system}
dest=${DESTDIR:-}
share=$prefix/share
config=$etc/windlass/worker.toml
unit=$units/windlass-worker.service
bash_completion=$share/bash-completion/completions/windlass
zsh_completion=$share/zsh/vendor-completions/_windlass
fish_completion=$share/fish/vendor_completions.d/windlass.fish

# Whether the program has a verb: old ones have no manual to write.
has() { "$binary" help "$1" >/dev/null 2>&1; }

# put MODE SOURCE TARGET
put() { install -D -m "$1" "$2" "$dest$3"; }

completions() {
  local shell file
  has completions || return 0
  for shell in bash zsh fish; do
    case $shell in bash) file=$bash_completion ;; zsh) file=$zsh_completion ;; *) file=$fish_completion ;; esac
    "$binary" completions "$shell" >"$scratch/completion"
    put 644 "$scratch/completion" "$file"
  done
}

manual() {
  local page
  has man || return 0
  mkdir "$scratch/man"
  "$binary" man "$scratch/man"
  for page in "$scratch"/man/*.1; do put 644 "$page" "$share/man/man1/$(basename "$page")"; done
}

documents() {
  local page
  for page in README.md CHANGELOG.md SECURITY.md LICENSE config/worker.toml config/services.toml config/nats.conf; do put 644 "$page" "$share/doc/windlass/$(basename "$page")"; done
  (cd docs && find . -name '*.md') | while read -r page; do put 644 "docs/$page" "$share/doc/windlass/${page#./}"; done
}

install_all() {
  [ -x "$binary" ] || { echo "install: there is no $binary; cargo build --release --locked makes it" >&2; exit 1; }
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  put 755 "$binary" "$prefix/bin/windlass"
  completions
  manual
  documents
  sed "s,/usr/bin/windlass,$prefix/bin/windlass,; s,/etc/,$etc/,; s,/usr/share/,$share/," deploy/systemd/windlass-worker.service >"$scratch/unit"
  put 644 "$scratch/unit" "$unit"
  if [ -e "$dest$config" ]; then
    cmp -s config/worker.toml "$dest$config" || echo "install: $dest$config is kept; the new one is $share/doc/windlass/worker.toml" >&2
  else
    put 644 config/worker.toml "$config"
  fi
}

uninstall_all() {
  rm -f "$dest$prefix/bin/windlass" "$dest$bash_completion" "$dest$zsh_completion" "$dest$fish_completion" "$dest$unit"
  rm -f "$dest$share"/man/man1/windlass.1 "$dest$share"/man/man1/windlass-*.1
  rm -rf "$dest$share/doc/windlass"
  [ ! -e "$dest$config" ] || echo "uninstall: $dest$config is kept" >&2
}

case ${1:-} in
  install) install_all ;;
  uninstall) uninstall_all ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

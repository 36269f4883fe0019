# redis-server.sh: see to it that redis-server and redis-cli are there.
#
# Where they are, nothing is done. Else Debian's package is installed, as root or with sudo. It
# starts a service of its own on port 6379; nobody here touches or uses that one.

if command -v redis-server >/dev/null && command -v redis-cli >/dev/null; then
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo 'redis-server and redis-cli (6.2 or newer) are needed and not found. Install the package' >&2
    echo 'of your system (it is called redis nearly everywhere) and try again.' >&2
    exit 1
fi

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root='sudo -n'
elif command -v sudo >/dev/null && [ -t 0 ]; then
    # It asks for the password.
    as_root=sudo
else
    echo 'redis-server is needed and not found. As root, type' >&2
    echo '    apt-get update && apt-get install --yes redis-server' >&2
    echo 'and try again.' >&2
    exit 1
fi

echo 'There is no redis-server yet; installing it.'
$as_root apt-get update &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes redis-server </dev/null &&
    command -v redis-server >/dev/null || {
    echo 'redis-server could not be installed; apt-get says why above.' >&2
    exit 1
}

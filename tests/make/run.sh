# run.sh BINARIES [ADDRESS]: what `make run` does after building.
#
# Starts a Redis on the socket run/redis.sock of the working directory, which keeps its data in
# run/, and libraryd of the directory BINARIES in the foreground; run/env makes library-req work in
# a second terminal. With an ADDRESS there is no Redis of our own: that one is worked on.
#
# Nothing outlives this script but a kill -9: libraryd is stopped first, then Redis, whether
# Ctrl-C, SIGTERM or SIGHUP says so or libraryd ends by itself. Neither gets the signals of the
# terminal: a Redis that stopped together with libraryd could not take what that still finishes.

binaries=$(cd "$1" && pwd) || exit 1
address=$2
# The library's data and its address are nobody else's business.
umask 077
# A reader of our messages that has gone away must not end us with Redis still running.
trap '' PIPE

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Text as one word for any shell.
quoted() {
    printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"
}

is_foreground() {
    [ -t 0 ] && [ -t 1 ] && read -r _ _ _ _ group _ _ foreground _ 2>/dev/null <"/proc/$$/stat" &&
        [ "$group" = "$foreground" ]
}

# Ctrl-C goes to make as well, which would end as interrupted, with status 130. Where the shell
# (dash) then moves to a process group of its own and takes the terminal along, it is ours alone,
# and its jobs are out of its reach. Else setsid keeps them so.
out_of_reach=setsid
if is_foreground; then
    make_group=$group
    set -m
    if is_foreground && [ "$group" != "$make_group" ]; then
        out_of_reach=
    else
        set +m
    fi
fi
for tool in flock $out_of_reach; do
    command -v "$tool" >/dev/null || fail "$tool is needed and not found; it is part of util-linux."
done

mkdir -p run || exit 1
# One library at a time in this directory. The lock is held by us and by libraryd, so that it tells
# of either; the file names libraryd's process.
exec 9>>run/libraryd.lock || exit 1
if ! flock -n 9; then
    pid=$(cat run/libraryd.lock)
    fail "A library is running here already${pid:+ (libraryd is process $pid)}; nothing was done." \
        "Ctrl-C in its terminal stops it${pid:+, or: kill $pid}."
fi
: >run/libraryd.lock

redis=
libraryd=
asked=

# Once is a wish, twice is an order: libraryd tells the two apart itself.
stop_asked() {
    asked=yes
    [ -z "$libraryd" ] || kill -TERM "$libraryd" 2>/dev/null
}

stop() {
    trap '' INT TERM HUP
    if [ -n "$libraryd" ] && kill -TERM "$libraryd" 2>/dev/null; then
        wait "$libraryd"
    fi
    if [ -n "$redis" ] && kill -TERM "$redis" 2>/dev/null; then
        wait "$redis"
        echo 'Redis is stopped too. The library is kept in run/; the next make run goes on with it.'
    fi
    : >run/libraryd.lock
}

answers() {
    [ "$(redis-cli -s run/redis.sock ping 2>/dev/null)" = PONG ]
}

start_redis() {
    # A path of more bytes than this fits no socket's address; through /proc there is a shorter one.
    address=$(pwd)/run/redis.sock
    too_long=
    [ "$(printf %s "$address" | wc -c)" -le 107 ] || too_long=yes

    # Two of them on one append-only file would ruin it. This lock is held by us and by Redis.
    exec 8>>run/redis.lock || exit 1
    if ! flock -n 8; then
        # Whoever started it was killed, or the other lock would be held.
        echo 'A Redis that an earlier make run had to leave behind is still running; it is restarted.'
        pid=$(cat run/redis.lock)
        kill -TERM "$pid"
        flock -w 30 8 || fail "It does not stop; look at it, or: kill -9 $pid"
    fi

    (
        cd run &&
            exec $out_of_reach redis-server --port 0 --unixsocket redis.sock --unixsocketperm 700 \
                --dir . --appendonly yes --save '' --maxmemory-policy noeviction --daemonize no \
                --logfile redis.log
    ) </dev/null 9>&- &
    redis=$!
    echo "$redis" >run/redis.lock
    until answers || [ -n "$asked" ]; do
        kill -0 "$redis" 2>/dev/null || {
            redis=
            tail -n 5 run/redis.log >&2
            fail 'Redis could not be started; above is the end of its log, run/redis.log.'
        }
        sleep 0.1
    done
    if [ -n "$too_long" ]; then
        address=/proc/$redis/cwd/redis.sock
    fi
    # It has none, and would refuse one that is meant for another.
    unset LIBRARY_PASSWORD
}

write_env() {
    {
        echo '# Written by make run, for sh, bash and zsh: . run/env'
        printf 'case ":$PATH:" in\n*:%s:*) ;;\n' "$(quoted "$binaries")"
        printf '*) PATH=%s:$PATH ;;\nesac\nexport PATH\n' "$(quoted "$binaries")"
        printf 'LIBRARY_ADDRESS=%s\nexport LIBRARY_ADDRESS\n' "$(quoted "$address")"
        [ -z "$redis" ] || echo 'unset LIBRARY_PASSWORD'
    } >run/env
}

trap stop_asked INT TERM HUP
trap stop EXIT

case $address in
'') start_redis ;;
*://* | /*) ;;
*/*) address=$(pwd)/$address ;;
# Without repeating it: there may be a password in it.
*:*) fail 'ADDRESS is no path of a socket; for a host and a port it is redis://HOST:PORT' ;;
*) address=$(pwd)/$address ;;
esac
write_env || exit 1
[ -z "$asked" ] || exit 0

if [ -n "$redis" ]; then
    echo 'Redis is up: socket run/redis.sock, data in run/. Ctrl-C stops it all.'
fi
echo 'In a second terminal, in this directory:'
echo '    . run/env'
echo '    library-req request user1 alice-in-wonderland geb invisible-cities'

# The address goes by the environment: it may carry a password.
LIBRARY_ADDRESS=$address $out_of_reach "$binaries/libraryd" worker1 </dev/null 8>&- &
libraryd=$!
echo "$libraryd" >run/libraryd.lock
[ -z "$asked" ] || stop_asked

# One command for the shell: between two of them dash would report on the jobs that have ended.
until_libraryd_ends() {
    while :; do
        wait "$libraryd"
        status=$?
        # A signal ends the waiting, not libraryd.
        kill -0 "$libraryd" 2>/dev/null || break
    done
    libraryd=
    # It was asked to stop before it could listen.
    if [ -n "$asked" ] && [ "$status" = 143 ]; then
        status=0
    fi
    exit "$status"
}
until_libraryd_ends

# demo.sh BINARIES: what `make demo` plays: a day at the library, each command with what it answers.
#
# All happens on a Redis of its own, in a temporary directory that is gone afterwards. Each command
# must end with the status that is expected of it, or the demo ends there with status 1.

PATH=$(cd "$1" && pwd):$PATH || exit 1
directory=$(mktemp -d) && cd "$directory" || exit 1
# In order, whoever reads it.
exec 2>&1
# A relative path: the directory's own may be too long for a socket.
export LIBRARY_ADDRESS=./redis.sock
unset LIBRARY_PASSWORD

redis=
libraryd=
client=

end() { # PROCESS: some shells tell what a signal has ended
    { kill "$1" && wait "$1"; } 2>/dev/null
}

stop() {
    for process in $client $libraryd $redis; do
        end "$process"
    done
    cd / && rm -rf "$directory"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
    printf '\nThis is not how it should be: %s\n' "$*"
    exit 1
}

until_() { # WHAT COMMAND...: waits until it succeeds
    what=$1
    shift
    for _ in $(seq 200); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.02
    done
    fail "waited in vain until $what"
}

tell() {
    printf '\n%s\n' "# $*"
}

play() { # STATUS COMMAND...
    wanted=$1
    shift
    printf '$ %s\n' "$*"
    "$@"
    ended $? "$wanted"
}

ended() { # STATUS WANTED
    [ "$1" = 0 ] || echo "(exit status $1)"
    [ "$1" = "$2" ] || fail "exit status $1, not $2"
}

start_libraryd() {
    libraryd worker1 >libraryd.log 2>&1 &
    libraryd=$!
    until_ 'libraryd is ready' grep 'is ready' libraryd.log
}

stop_libraryd() {
    end "$libraryd"
    libraryd=
}

redis-server --port 0 --unixsocket redis.sock --save '' --appendonly yes --dir . \
    --maxmemory-policy noeviction --logfile redis.log &
redis=$!
until_ 'Redis answers' redis-cli -s redis.sock ping
start_libraryd
echo 'Redis is up, on a socket of its own, and libraryd worker1 on it.'

tell 'A request. Nobody has these books.'
play 0 library-req request user1 alice-in-wonderland geb
tell 'A book that somebody else has is refused, and who has it is not told.'
play 0 library-req request user2 geb momo
tell 'Five books in hand at most: one more, and none is lent.'
play 1 library-req request user2 emil heidi krabat ronja matilda

tell 'A return; the same again is told calmly; what another has, one cannot return.'
play 0 library-req return user1 geb
play 0 library-req return user1 geb
play 1 library-req return user1 momo

tell 'A script that does not know whether it was heard asks again: --id lends once.'
play 0 library-req request user3 geb --id order-4711
play 0 library-req request user3 geb --id order-4711
tell 'For programs.'
play 0 library-req request user3 krabat momo --json

tell 'Who has what, where it is, what happened.'
play 0 library-req loans user3
play 0 library-req where geb
play 0 library-req where geb --show-user
play 0 library-req where heidi
play 0 library-req history --last 3

tell 'Watching what happens, here only as long as one request takes.'
echo '$ library-req watch --show-user &'
library-req watch --show-user >watched 2>&1 &
client=$!
until_ 'it watches' sh -c 'redis-cli -s redis.sock client list | grep "flags=b.*cmd=xread "'
play 0 library-req request user4 ronja
until_ 'the watcher has seen it' grep ronja watched
end "$client"
client=
cat watched

tell "A night's batch. One line is bad: nothing is sent, and the line is laid aside."
cat >tonight <<'END'
return user1 alice-in-wonderland
return user4, ronja
return user3 krabat
request user4 "the selfish gene"   # three words, one title
END
play 0 cat tonight
play 2 library-req batch tonight
play 0 cat tonight.rejected
tell 'The good ones all the same; the results are for nobody else to read.'
play 2 library-req batch tonight --partial --results tonight.csv
play 0 cat tonight.csv
play 0 stat --format=%A tonight.csv
tell 'Once more, as after a crash: nothing is sent twice.'
play 2 library-req batch tonight --partial --results again.csv
play 0 cmp tonight.csv again.csv
play 0 library-req loans user4

stop_libraryd
tell 'Stopped while nobody answers: the request stays queued.'
echo '$ library-req request user5 momo-2'
library-req request user5 momo-2 >asked 2>&1 &
client=$!
until_ 'it waits' grep 'no libraryd is running' asked
# Ctrl-C does as much; but what a script begins in the background has that signal ignored.
kill -TERM "$client"
wait "$client" 2>/dev/null
status=$?
client=
cat asked
ended "$status" 143
event=$(sed -n 's/.*library-req outcome \([^ ]*\) .*/\1/p' asked)
play 3 library-req outcome "$event"
start_libraryd
echo '$ libraryd worker1 &'
until_ 'it is decided' library-req outcome "$event"
play 0 library-req outcome --show-user "$event"

tell 'A reader that goes away is no failure.'
echo '$ library-req history | head -n 1'
{
    library-req history
    echo "$?" >status
} | head -n 1
ended "$(cat status)" 0

tell 'And all is as it must be.'
play 0 library-admin check

#!/bin/sh
# library-returns.sh collect | hand-in LIBRARY_REQ: the two steps of library-returns.service, which
# tells what they are for. STATE_DIRECTORY, RETURNS and BATCH_OPTIONS come from there.
#
# Whatever was collected is handed in until all of it has an outcome, on whatever day that is:
# returns-DATE.done tells.

set -eu
cd "$STATE_DIRECTORY"

fail() {
    echo "library-returns: $*" >&2
    exit 1
}

# As root. Interrupted at any command, it goes on where it was: the name tells how far a file has come.
collect() {
    day=returns-$(date +%F)
    taken=$RETURNS.taken
    # First within its directory, at one stroke: to another file system mv copies, and half a copy here
    # could not be told from a whole one if a new file were there.
    if [ -e "$RETURNS" ] && ! [ -e "$taken" ] && ! [ -e incoming ] && ! [ -e "$day" ]; then
        mv -f "$RETURNS" "$taken"
    fi
    if [ -e "$taken" ]; then
        mv -f "$taken" incoming
    fi
    if [ -e incoming ] && ! [ -e "$day" ]; then
        # Else who may write to the spool could have any file of the system given away.
        if [ -h incoming ] || ! [ -f incoming ] || [ "$(stat -c %h incoming)" != 1 ]; then
            fail "$RETURNS was no file of its own: see $STATE_DIRECTORY/incoming, and remove it"
        fi
        chown --reference=. incoming
        chmod 600 incoming
        mv -f incoming "$day"
    fi
}

# Oldest first.
hand_in() {
    worst=0
    found=
    for day in returns-????-??-??; do
        if ! [ -e "$day" ] || [ -e "$day.done" ]; then
            continue
        fi
        found=yes
        status=0
        rm -f "$day.csv"
        # A batch of that name: the same returns on another day are others. The options are words.
        # shellcheck disable=SC2086
        "$1" batch $BATCH_OPTIONS --batch-id "$day" --results "$day.csv" "$day" || status=$?
        case $status in
        # 2 without results is a fault of an option or of the whole file: nothing was sent.
        0 | 1 | 2) if [ -e "$day.csv" ]; then : >"$day.done"; fi ;;
        # Redis is out of reach, or not all has an outcome: again later, before those of later days.
        *) exit "$status" ;;
        esac
        if [ "$status" -gt "$worst" ]; then
            worst=$status
        fi
    done
    if [ -z "$found" ]; then
        echo 'no returns to hand in'
    fi
    exit "$worst"
}

case ${1-} in
collect) collect ;;
hand-in) hand_in "$2" ;;
*) fail "it is collect, or hand-in LIBRARY_REQ" ;;
esac

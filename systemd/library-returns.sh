#!/bin/sh
# library-returns.sh collect | hand-in LIBRARY_REQ: the two steps of library-returns.service, which
# tells what they are for. STATE_DIRECTORY, RETURNS and BATCH_OPTIONS come from there.
#
# Whatever was collected is handed in until all of it has an outcome, on whatever day that is:
# returns-DATE.done tells. Ends with 2 if somebody has to look, with another status but 0 if it is to be
# tried again.

set -eu
cd "$STATE_DIRECTORY"

look() {
    echo "library-returns: $*" >&2
    exit 2
}

is_there() {
    [ -e "$1" ] || [ -h "$1" ]
}

# Else who may write to the spool could have any file of the system read or given away. What is left is
# for the kernel to see to: fs.protected_hardlinks, which is on everywhere.
check() {
    if [ -h "$1" ] || ! [ -f "$1" ] || [ "$(stat -c %h -- "$1")" != 1 ]; then
        look "$1 is no file of its own: nothing is collected until it is removed"
    fi
}

# As root. Interrupted at any command, it goes on where it was: the name tells how far a file has come.
# Nothing is moved into a directory that somebody has put where a file belongs (-T).
collect() {
    day=returns-$(date +%F)
    taken=$RETURNS.taken
    # First within its directory, at one stroke: to another file system mv copies, and half a copy here
    # could not be told from a whole one if a new file were there.
    if is_there "$RETURNS" && ! is_there "$taken" && ! is_there incoming && ! [ -e "$day" ]; then
        mv -fT "$RETURNS" "$taken"
    fi
    if is_there "$taken"; then
        check "$taken"
        mv -fT "$taken" incoming
    fi
    if is_there incoming && ! [ -e "$day" ]; then
        check incoming
        chown -h --reference=. incoming
        chmod 600 incoming
        mv -fT incoming "$day"
    fi
}

# Oldest first.
hand_in() {
    failed=
    found=
    for day in returns-????-??-??; do
        if ! [ -e "$day" ] || [ -e "$day.done" ]; then
            continue
        fi
        found=yes
        status=0
        rm -f "$day.csv"
        # A batch of that name: the same returns on another day, or of another machine, are others. The
        # options are words.
        # shellcheck disable=SC2086
        "$1" batch $BATCH_OPTIONS --batch-id "$day.$(uname -n)" --results "$day.csv" "$day" || status=$?
        case $status in
        # 1: every line was handed in, and some changed nothing. The results tell which.
        0 | 1 | 2)
            # 2 without results is a fault of an option or of the whole file: nothing was sent.
            if [ -e "$day.csv" ]; then
                : >"$day.done"
            else
                failed=yes
            fi
            ;;
        # Redis is out of reach, or not all has an outcome: again later, before those of later days.
        *) exit "$status" ;;
        esac
    done
    if [ -z "$found" ]; then
        echo 'no returns to hand in'
    fi
    for rejected in returns-*.rejected; do
        if [ -e "$rejected" ]; then
            echo "$STATE_DIRECTORY/$rejected: lines to be corrected, and the file to be removed" >&2
            failed=yes
        fi
    done
    if [ -n "$failed" ]; then
        exit 2
    fi
}

case ${1-} in
collect) collect ;;
hand-in) hand_in "$2" ;;
*) look "it is collect, or hand-in LIBRARY_REQ" ;;
esac

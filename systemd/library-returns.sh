#!/bin/sh
# library-returns.sh collect | hand-in LIBRARY_REQ: the two steps of library-returns.service, which
# tells what they are for. STATE_DIRECTORY, RETURNS and BATCH_OPTIONS come from there.
#
# Whatever was collected is handed in until all of it has an outcome, on whatever day that is:
# returns-DATE.done tells. Ends with 2 if somebody has to look, with any other status but 0 if it is to be
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

# Otherwise whoever may write to the spool could have any file of the system read or given away. What is
# left, a hard link made after this look, the kernel prevents: fs.protected_hardlinks, on everywhere.
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
    # Not the same as one that is empty: a name mistyped, or a disk not mounted, would collect nothing for
    # ever. What was collected before is handed in all the same; then it is told.
    spool=$(dirname -- "$RETURNS")
    if [ -d "$spool" ]; then
        rm -f no-spool
    else
        : >no-spool
    fi
    # Only root may be able to see that.
    if is_there "$RETURNS"; then
        : >too-late
    else
        rm -f too-late
    fi
}

# The name of a day's batch: the same returns on another day, or of another machine, are others. It is kept
# before anything is sent, whole or not at all: a machine that has got another name meanwhile would send
# the day a second time.
name_of() {
    if ! [ -s "$1.batch" ]; then
        machine=$(uname -n)
        echo "$1.$machine" >"$1.batch.new"
        mv -fT "$1.batch.new" "$1.batch"
    fi
    cat "$1.batch"
}

# Bad lines are told once, however often the day is tried: by the next time they may have been corrected in
# place, or handed in and removed. Interrupted, it goes on where it was: before the mark they are written
# anew, and behind it they are in one of the two places, or gone for good.
tell_bad() {
    if ! [ -e "$1.bad" ]; then
        return
    fi
    : >"$1.told"
    # It was left by a version that knew no mark.
    if is_there "$1.rejected"; then
        rm "$1.bad"
    else
        mv -fT "$1.bad" "$1.rejected"
        echo "that is now $STATE_DIRECTORY/$1.rejected" >&2
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
        batch=$(name_of "$day")
        bad=$day.bad
        if [ -e "$day.told" ]; then
            tell_bad "$day"
            echo "the bad lines of $day were told before, and are not written again" >&2
            bad=/dev/null
        fi
        # The options are words.
        # shellcheck disable=SC2086
        "$1" batch --only return $BATCH_OPTIONS --batch-id "$batch" --results "$day.csv" --rejected "$bad" "$day" ||
            status=$?
        tell_bad "$day"
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
    if [ -e too-late ]; then
        echo "$RETURNS came after this day's returns were collected: it is for the next day"
    elif [ -z "$found" ]; then
        echo 'no returns to hand in'
    fi
    for rejected in returns-*.rejected; do
        if [ -e "$rejected" ]; then
            echo "$STATE_DIRECTORY/$rejected: lines to be corrected, and the file to be removed" >&2
            failed=yes
        fi
    done
    if [ -e no-spool ]; then
        echo "$(dirname -- "$RETURNS"), where returns are to be left, is no directory: nothing is collected" >&2
        failed=yes
    fi
    if [ -n "$failed" ]; then
        exit 2
    fi
}

case ${1-} in
collect) collect ;;
hand-in) hand_in "$2" ;;
*) look "it is collect, or hand-in LIBRARY_REQ" ;;
esac

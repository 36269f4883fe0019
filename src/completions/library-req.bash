# bash completion for library-req; tests/manuals.rs holds it against --help.

_library_req() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command options i
    # Those with a value.
    local valued=' -a --address --db --username --password --password-file --branch --timeout'
    valued+=' --id --remember --only --results --rejected --batch-id --user --book --since --last '
    COMPREPLY=()

    # To bash, --option=VALUE is three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --results | --rejected | --password-file)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    -a | --address)
        compopt -o filenames -o nospace 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -W 'redis:// rediss:// unix://' -f -- "$cur")
        return
        ;;
    --only)
        mapfile -t COMPREPLY < <(compgen -W 'request return' -- "$cur")
        return
        ;;
    --since)
        mapfile -t COMPREPLY < <(compgen -W '90m 12h 7d' -- "$cur")
        return
        ;;
    esac
    [[ $valued == *" $prev "* ]] && return

    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ $valued == *" ${COMP_WORDS[i]} "* ]]; then
            [[ ${COMP_WORDS[++i]} == = ]] && ((i++))
        elif [[ ${COMP_WORDS[i]} != -* ]]; then
            command=${COMP_WORDS[i]}
            break
        fi
    done
    case $command in
    request | return) options='--timeout --no-wait --id --remember --json -q --quiet' ;;
    batch)
        options='--timeout --no-wait --only --partial --results --rejected --batch-id --remember'
        options+=' --json -q --quiet'
        ;;
    outcome) options='--show-user --json -q --quiet' ;;
    loans) options='--json' ;;
    where) options='--show-user --json' ;;
    history) options='--user --book --since --last --show-user --json' ;;
    watch) options='--user --book --show-user --json' ;;
    esac
    options+=' -a --address --db --username --password --password-file --ssl --branch'
    options+=' -h --help -V --version'

    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(
            compgen -W 'request return batch outcome loans where history watch' -- "$cur"
        )
    elif [[ $command == batch ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}
complete -F _library_req library-req

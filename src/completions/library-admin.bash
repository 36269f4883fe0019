# bash completion for library-admin; tests/manuals.rs holds it against --help.

_library_admin() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=() options i
    # Those with a value.
    local valued=' -a --address --db --username --password --password-file --branch --last'
    valued+=' --from --stream '
    COMPREPLY=()

    # To bash, --option=VALUE is three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --password-file)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    -a | --address)
        compopt -o filenames -o nospace 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -W 'redis:// rediss:// unix://' -f -- "$cur")
        return
        ;;
    --stream)
        mapfile -t COMPREPLY < <(compgen -W 'requests returns handoffs' -- "$cur")
        return
        ;;
    esac
    [[ $valued == *" $prev "* ]] && return

    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ $valued == *" ${COMP_WORDS[i]} "* ]]; then
            [[ ${COMP_WORDS[++i]} == = ]] && ((i++))
        elif [[ ${COMP_WORDS[i]} != -* ]]; then
            words+=("${COMP_WORDS[i]}")
        fi
    done
    case ${words[0]} in
    check) options='--repair' ;;
    dead-letters) options='--last' ;;
    regroup) options='--from --stream --before-outcomes' ;;
    esac
    options+=' --json -a --address --db --username --password --password-file --ssl --branch'
    options+=' -h --help -V --version'

    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    elif [[ -z ${words[0]} ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'status check dead-letters regroup' -- "$cur")
    elif [[ ${words[*]} == dead-letters ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'list retry drop' -- "$cur")
    fi
}
complete -F _library_admin library-admin

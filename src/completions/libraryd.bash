# bash completion for libraryd; tests/manuals.rs holds it against --help.

_libraryd() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} options
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
    --log-level)
        mapfile -t COMPREPLY < <(compgen -W 'error warn info debug trace' -- "$cur")
        return
        ;;
    --log-outcomes)
        mapfile -t COMPREPLY < <(compgen -W 'all refused none' -- "$cur")
        return
        ;;
    --db | --username | --password | --branch | --lease | --batch | \
        --outcomes-kept | --retain-days | --tries | --silent-after | --abandoned-after) return ;;
    esac

    options='-f --force --lease --batch --outcomes-kept --retain-days --keep-events --tries'
    options+=' --silent-after --abandoned-after --exit-if-unavailable --log-level --log-outcomes'
    options+=' -a --address --db --username --password --password-file --ssl --branch'
    options+=' -h --help -V --version'
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    fi
}
complete -F _libraryd libraryd

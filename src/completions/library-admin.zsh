#compdef library-admin
# zsh completion for library-admin; tests/manuals.rs holds it against --help.

_library-admin_address() {
    _alternative 'urls:URL:compadd -S "" redis\:// rediss\:// unix\://' 'sockets:socket:_files'
}

_library-admin() {
    local curcontext=$curcontext state state_descr line
    local -A opt_args
    local -a commands verbs common

    commands=(
        'status:instances, what waits, dead letters, automated storage'
        'check:hold the whole state against the rules of the library'
        'dead-letters:events that could not be worked on'
        'regroup:go on after a consumer group was lost'
    )
    verbs=('list:all of them' 'retry:put some back' 'drop:remove some for good')
    common=(
        '--json[print JSON, one object a line]'
        '(-a --address)'{-a+,--address=}'[URL or path of a socket]:address:_library-admin_address'
        '--db=[number of the Redis database]:number'
        '--username=[Redis user]:user'
        '(--password-file)--password=[Redis password]:password'
        '(--password)--password-file=[read the password from a file]:file:_files'
        '--ssl[speak TLS]'
        '--branch=[work on a branch of the library]:name'
        '(- *)'{-h,--help}'[print a summary]'
        '(- *)'{-V,--version}'[print the version]'
    )

    _arguments -C -S : $common '1:command:->command' '*::argument:->argument' && return
    case $state in
    command) _describe command commands ;;
    argument)
        curcontext=${curcontext%:*}-$words[1]:
        case $words[1] in
        status) _arguments -S : $common ;;
        check) _arguments -S : $common '--repair[mend what can be mended without guessing]' ;;
        dead-letters)
            _arguments -C -S : $common '--last=[list only the newest N]:number' \
                '1:verb:->verb' '*:id' && return
            [[ $state == verb ]] && _describe verb verbs
            ;;
        regroup)
            _arguments -S : $common '--from=[the first event that is not decided]:id' \
                '--before-outcomes[also on events older than the outcomes]' \
                '--stream=[only the group of this stream]:stream:(requests returns handoffs)'
            ;;
        esac
        ;;
    esac
}

_library-admin "$@"

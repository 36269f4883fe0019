#compdef library-req
# zsh completion for library-req; tests/manuals.rs holds it against --help.

_library-req_address() {
    _alternative 'urls:URL:compadd -S "" redis\:// rediss\:// unix\://' 'sockets:socket:_files'
}

_library-req() {
    local curcontext=$curcontext state state_descr line
    local -A opt_args
    local -a commands common wait json quiet filter show

    commands=(
        'request:ask for books to be lent to a user'
        "return:give a user's books back"
        'batch:send a file of lines `request|return USER BOOK...`'
        'outcome:tell what became of an event'
        'loans:tell which books a user has'
        'where:tell where a book is'
        'history:tell the latest outcomes, the oldest first'
        'watch:tell outcomes as they happen'
    )
    common=(
        '(-a --address)'{-a+,--address=}'[URL or path of a socket]:address:_library-req_address'
        '--db=[number of the Redis database]:number'
        '--username=[Redis user]:user'
        '(--password-file)--password=[Redis password]:password'
        '(--password)--password-file=[read the password from a file]:file:_files'
        '--ssl[speak TLS]'
        '--branch=[work on a branch of the library]:name'
        '(- *)'{-h,--help}'[print a summary]'
        '(- *)'{-V,--version}'[print the version]'
    )
    wait=(
        '(--no-wait)--timeout=[how long to wait for an outcome]:seconds'
        '(--timeout --results)--no-wait[queue it, print OK and leave]'
    )
    json=('(-q --quiet)--json[print JSON, one object a line]')
    quiet=('(--json -q --quiet)'{-q,--quiet}'[print nothing but errors; the exit status says it]')
    filter=(
        '--user=[only what concerns this user]:user'
        '--book=[only what concerns this book]:book'
    )
    show=('--show-user[tell who has or had a book]')

    _arguments -C -S : $common '1:command:->command' '*::argument:->argument' && return
    case $state in
    command) _describe command commands ;;
    argument)
        curcontext=${curcontext%:*}-$words[1]:
        case $words[1] in
        request | return)
            _arguments -S : $common $wait $json $quiet \
                '--id=[name it, so that it is queued once]:id' \
                '--remember=[for how long it is known]:time' '1:user' '*:book'
            ;;
        batch)
            _arguments -S : $common $wait $json $quiet \
                '--only=[lines of the other kind are bad]:action:(request return)' \
                '--partial[send the good lines of a file that has bad ones]' \
                '(--no-wait)--results=[write the results there]:file:_files' \
                '--rejected=[write bad lines there]:file:_files' \
                '--batch-id=[name the batch]:id' \
                '--remember=[for how long it is known]:time' '1:file:_files'
            ;;
        outcome) _arguments -S : $common $json $quiet $show '1:event' ;;
        loans) _arguments -S : $common $json '1:user' ;;
        where) _arguments -S : $common $json $show '1:book' ;;
        history)
            _arguments -S : $common $json $show $filter \
                '--since=[only from then on]:time:(90m 12h 7d)' '--last=[only the last N]:number'
            ;;
        watch) _arguments -S : $common $json $show $filter ;;
        esac
        ;;
    esac
}

_library-req "$@"

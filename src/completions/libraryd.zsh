#compdef libraryd
# zsh completion for libraryd; tests/manuals.rs holds it against --help.

_libraryd_address() {
    _alternative 'urls:URL:compadd -S "" redis\:// rediss\:// unix\://' 'sockets:socket:_files'
}

_arguments -S : \
    '(-f --force)'{-f,--force}'[take the name even from a running instance]' \
    '--lease=[how long until others take over]:seconds' \
    '--batch=[the most events that one script decides]:number' \
    '--outcomes-kept=[how many outcomes are kept, about]:number' \
    '--retain-days=[drop outcomes older than that]:days' \
    '--keep-events[leave decided events in their streams]' \
    '--tries=[give up an event that N instances died of]:number' \
    '--silent-after=[how long until a silent instance holds up no refusal]:seconds' \
    '--abandoned-after=[how long until its events are taken over]:seconds' \
    '--exit-if-unavailable[end if there is no Redis at the start]' \
    '--log-level=[the least important messages]:level:(error warn info debug trace)' \
    '--log-outcomes=[which outcomes are logged]:outcomes:(all refused none)' \
    '(-a --address)'{-a+,--address=}'[URL or path of a socket]:address:_libraryd_address' \
    '--db=[number of the Redis database]:number' \
    '--username=[Redis user]:user' \
    '(--password-file)--password=[Redis password]:password' \
    '(--password)--password-file=[read the password from a file]:file:_files' \
    '--ssl[speak TLS]' \
    '--branch=[work on a branch of the library]:name' \
    '(- *)'{-h,--help}'[print a summary]' \
    '(- *)'{-V,--version}'[print the version]' \
    '1:unique name'

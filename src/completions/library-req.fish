# fish completion for library-req; tests/manuals.rs holds it against --help.

set -l commands request return batch outcome loans where history watch

complete -c library-req -f
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a request -d 'Ask for books to be lent to a user'
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a return -d "Give a user's books back"
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a batch -d 'Send the requests and returns of a file'
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a outcome -d 'Tell what became of an event'
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a loans -d 'Tell which books a user has'
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a where -d 'Tell where a book is'
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a history -d 'Tell the latest outcomes'
complete -c library-req -n "not __fish_seen_subcommand_from $commands" -a watch -d 'Tell outcomes as they happen'

complete -c library-req -n '__fish_seen_subcommand_from request return batch' -l timeout -x -d 'How many seconds to wait for an outcome'
complete -c library-req -n '__fish_seen_subcommand_from request return batch' -l no-wait -d 'Queue it, print OK and leave'
complete -c library-req -n '__fish_seen_subcommand_from request return' -l id -x -d 'Name it, so that it is queued once'
complete -c library-req -n '__fish_seen_subcommand_from request return batch' -l remember -x -d 'For how long it is known'
complete -c library-req -n '__fish_seen_subcommand_from batch' -F
complete -c library-req -n '__fish_seen_subcommand_from batch' -l only -x -a 'request return' -d 'Lines of the other kind are bad'
complete -c library-req -n '__fish_seen_subcommand_from batch' -l partial -d 'Send the good lines of a file that has bad ones'
complete -c library-req -n '__fish_seen_subcommand_from batch' -l results -r -F -d 'Write the results there'
complete -c library-req -n '__fish_seen_subcommand_from batch' -l rejected -r -F -d 'Write bad lines there'
complete -c library-req -n '__fish_seen_subcommand_from batch' -l batch-id -x -d 'Name the batch'
complete -c library-req -n '__fish_seen_subcommand_from history watch' -l user -x -d 'Only what concerns this user'
complete -c library-req -n '__fish_seen_subcommand_from history watch' -l book -x -d 'Only what concerns this book'
complete -c library-req -n '__fish_seen_subcommand_from history' -l since -x -a '90m 12h 7d' -d 'Only from then on'
complete -c library-req -n '__fish_seen_subcommand_from history' -l last -x -d 'Only the last N'
complete -c library-req -n '__fish_seen_subcommand_from outcome where history watch' -l show-user -d 'Tell who has or had a book'
complete -c library-req -n "__fish_seen_subcommand_from $commands" -l json -d 'Print JSON, one object a line'
complete -c library-req -n '__fish_seen_subcommand_from request return batch outcome' -s q -l quiet -d 'Print nothing'

complete -c library-req -s a -l address -r -F -a 'redis:// rediss:// unix://' -d 'URL or path of a socket'
complete -c library-req -l db -x -d 'Number of the Redis database'
complete -c library-req -l username -x -d 'Redis user'
complete -c library-req -l password -x -d 'Redis password'
complete -c library-req -l password-file -r -F -d 'Read the password from a file'
complete -c library-req -l ssl -d 'Speak TLS'
complete -c library-req -l branch -x -d 'Work on a branch of the library'
complete -c library-req -s h -l help -d 'Print a summary'
complete -c library-req -s V -l version -d 'Print the version'

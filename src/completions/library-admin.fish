# fish completion for library-admin; tests/manuals.rs holds it against --help.

set -l commands status check dead-letters regroup
set -l verbs list retry drop

complete -c library-admin -f
complete -c library-admin -n "not __fish_seen_subcommand_from $commands" -a status -d 'Instances, what waits, dead letters, storage'
complete -c library-admin -n "not __fish_seen_subcommand_from $commands" -a check -d 'Hold the whole state against the rules'
complete -c library-admin -n "not __fish_seen_subcommand_from $commands" -a dead-letters -d 'Events that could not be worked on'
complete -c library-admin -n "not __fish_seen_subcommand_from $commands" -a regroup -d 'Go on after a consumer group was lost'
complete -c library-admin -n "__fish_seen_subcommand_from dead-letters; and not __fish_seen_subcommand_from $verbs" -a list -d 'All of them'
complete -c library-admin -n "__fish_seen_subcommand_from dead-letters; and not __fish_seen_subcommand_from $verbs" -a retry -d 'Put some back'
complete -c library-admin -n "__fish_seen_subcommand_from dead-letters; and not __fish_seen_subcommand_from $verbs" -a drop -d 'Remove some for good'

complete -c library-admin -n '__fish_seen_subcommand_from check' -l repair -d 'Mend what can be mended without guessing'
complete -c library-admin -n '__fish_seen_subcommand_from dead-letters' -l last -x -d 'List only the newest N'
complete -c library-admin -n '__fish_seen_subcommand_from regroup' -l from -x -d 'The first event that is not decided'
complete -c library-admin -n '__fish_seen_subcommand_from regroup' -l before-outcomes -d 'Also on events older than the outcomes'
complete -c library-admin -n '__fish_seen_subcommand_from regroup' -l stream -x -a 'requests returns handoffs' -d 'Only the group of this stream'
complete -c library-admin -l json -d 'Print JSON, one object a line'

complete -c library-admin -s a -l address -r -F -a 'redis:// rediss:// unix://' -d 'URL or path of a socket'
complete -c library-admin -l db -x -d 'Number of the Redis database'
complete -c library-admin -l username -x -d 'Redis user'
complete -c library-admin -l password -x -d 'Redis password'
complete -c library-admin -l password-file -r -F -d 'Read the password from a file'
complete -c library-admin -l ssl -d 'Speak TLS'
complete -c library-admin -l branch -x -d 'Work on a branch of the library'
complete -c library-admin -s h -l help -d 'Print a summary'
complete -c library-admin -s V -l version -d 'Print the version'

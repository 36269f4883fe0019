# fish completion for libraryd; tests/manuals.rs holds it against --help.

complete -c libraryd -f
complete -c libraryd -s f -l force -d 'Take the name even from a running instance'
complete -c libraryd -l lease -x -d 'Seconds until others take over'
complete -c libraryd -l outcomes-kept -x -d 'How many outcomes are kept, about'
complete -c libraryd -l retain-days -x -d 'Drop outcomes older than N days'
complete -c libraryd -l keep-events -d 'Leave decided events in their streams'
complete -c libraryd -l tries -x -d 'Give up an event that N instances died of'
complete -c libraryd -l silent-after -x -d 'Seconds until a silent instance holds up no refusal'
complete -c libraryd -l abandoned-after -x -d 'Seconds until its events are taken over'
complete -c libraryd -l exit-if-unavailable -d 'End if there is no Redis at the start'
complete -c libraryd -l log-level -x -a 'error warn info debug trace' -d 'The least important messages'
complete -c libraryd -l log-outcomes -x -a 'all refused none' -d 'Which outcomes are logged'

complete -c libraryd -s a -l address -r -F -a 'redis:// rediss:// unix://' -d 'URL or path of a socket'
complete -c libraryd -l db -x -d 'Number of the Redis database'
complete -c libraryd -l username -x -d 'Redis user'
complete -c libraryd -l password -x -d 'Redis password'
complete -c libraryd -l password-file -r -F -d 'Read the password from a file'
complete -c libraryd -l ssl -d 'Speak TLS'
complete -c libraryd -l branch -x -d 'Work on a branch of the library'
complete -c libraryd -s h -l help -d 'Print a summary'
complete -c libraryd -s V -l version -d 'Print the version'

# install.sh install|uninstall: what `make install` and `make uninstall` do. BINDIR, LIBEXECDIR, DESTDIR,
# SETTINGS and INSTALLED, words of the form SOURCE:DESTINATION:MODE, come from the Makefile.
#
# Nothing is compiled: what `make static` made is copied, so that installing as root needs no
# toolchain and leaves nothing of root's in the source tree.

action=$1
settings=$DESTDIR$SETTINGS

fail() {
    printf 'make %s: %s\n' "$action" "$@" >&2
    exit 1
}

# The units name the paths of programs, and systemd wants them absolute.
case $BINDIR in
*[!A-Za-z0-9/._+-]*) fail "PREFIX must be a plain path, and $BINDIR is not" ;;
/*) ;;
*) fail "PREFIX must be an absolute path" ;;
esac

# Words, and no patterns.
set -f
# shellcheck disable=SC2086
set -- $INSTALLED

put() { # SOURCE DESTINATION MODE
    echo "  $2"
    install -D -m "$3" "$1" "$2" || exit 1
}

if [ "$action" = install ]; then
    for file; do
        source=${file%%:*}
        [ -e "$source" ] || fail "there is no $source: run make static first (not as root, and with the same CARGO_TARGET_DIR)"
    done
fi

for file; do
    source=${file%%:*}
    mode=${file##*:}
    destination=${file#*:}
    destination=$DESTDIR${destination%:*}
    case $action in
    install)
        put "$source" "$destination" "$mode"
        case $source in
        *.service)
            sed -e "s|/usr/local/bin/|$BINDIR/|g" \
                -e "s|/usr/local/libexec/library-lending/|$LIBEXECDIR/|g" \
                "$source" >"$destination" || exit 1
            ;;
        esac
        ;;
    uninstall)
        if [ -e "$destination" ]; then
            echo "  $destination"
            rm -f "$destination" || exit 1
        fi
        ;;
    esac
done

# The one directory that is nobody else's.
own=$DESTDIR$LIBEXECDIR
if [ "$action" = uninstall ] && [ -d "$own" ] && rmdir "$own" 2>/dev/null; then
    echo "  $own"
fi

# The settings are the operator's: never overwritten, and removed only as we laid them down.
default=systemd/libraryd.default
case $action in
install)
    if [ -e "$settings" ]; then
        echo "  $settings stays as it is (the example is $default)"
    else
        put "$default" "$settings" 644
    fi
    # With DESTDIR this is a package being made, and systemctl is for its scripts.
    if [ -z "$DESTDIR" ]; then
        echo 'Now: edit '"$settings"', then'
        echo '    systemctl daemon-reload && systemctl enable --now libraryd@worker1'
    fi
    ;;
uninstall)
    if cmp -s "$default" "$settings"; then
        echo "  $settings"
        rm -f "$settings" || exit 1
    elif [ -e "$settings" ]; then
        echo "  $settings stays: it was changed"
    fi
    if [ -z "$DESTDIR" ]; then
        echo 'Instances that run go on until they are stopped: systemctl stop "libraryd@*"'
    fi
    ;;
esac

# static.sh DIRECTORY BINARY...: build the release binaries statically linked and put them into
# DIRECTORY, once each of them has been found to be static and small.
#
# With musl where the toolchain has that target and there is a C compiler for it (ring has parts in
# C), else with glibc's static library. CARGO_TARGET_DIR must be set.

: "${CARGO:=cargo}" "${CARGO_TARGET_DIR:?}"
directory=$1
shift
max_bytes=3145728 # 3 MiB

fail() {
    printf 'make static: %s\n' "$@" >&2
    exit 1
}

host=$(rustc -vV | sed -n 's/^host: //p')
[ -n "$host" ] || fail 'rustc does not say what it compiles for'
arch=${host%%-*}
musl=$(echo "$host" | sed 's/-gnu/-musl/')

musl_cc=
for cc in "$arch-linux-musl-gcc" musl-gcc; do
    if command -v "$cc" >/dev/null; then
        musl_cc=$cc
        break
    fi
done

# The target is always named: flags for it then do not reach build scripts, which could not be
# built with them.
if [ "$musl" = "$host" ]; then
    target=$host
    how="musl, which this toolchain is made for"
elif [ -n "$musl_cc" ] && ls "$(rustc --print target-libdir --target "$musl")"/libstd-* >/dev/null 2>&1; then
    target=$musl
    how="musl ($musl with $musl_cc)"
    export "CC_$(echo "$musl" | tr - _)=$musl_cc"
else
    target=$host
    how="glibc's static library ($host; for musl: rustup target add $musl, and the package musl-tools)"
fi
echo "Linking statically with $how"
# Relative relocations are packed, 3 % of the file otherwise: glibc 2.36 and musl 1.2.4 unpack them, a
# linker that does not know them leaves them as they are, and an older libc shows when --version is run
# below. The index of unwinding tables, 1 % of it, is not needed either: a panic ends the process.
RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
    -C link-arg=-Wl,--no-eh-frame-hdr" \
    $CARGO build --release --locked --bins --target "$target" || exit 1

# Static: asks for no interpreter (the dynamic linker) and for no library.
is_static() {
    if command -v readelf >/dev/null; then
        headers=$(readelf --wide --program-headers --dynamic "$1") || return 1
        ! printf '%s\n' "$headers" | grep -E 'INTERP|\(NEEDED\)' >&2
    elif command -v ldd >/dev/null; then
        ldd "$1" 2>&1 | grep -qE 'statically linked|not a dynamic executable'
    else
        fail 'neither readelf nor ldd is there to tell whether the binaries are static'
    fi
}

built=$CARGO_TARGET_DIR/$target/release
for binary; do
    bytes=$(wc -c <"$built/$binary") || exit 1
    is_static "$built/$binary" || fail "$binary is not statically linked"
    "$built/$binary" --version >/dev/null </dev/null || fail "$binary --version does not run"
    awk -v name="$binary" -v bytes="$bytes" \
        'BEGIN { printf "  %-14s static, %8d bytes (%.2f MiB)\n", name, bytes, bytes / 1048576 }'
    [ "$bytes" -le "$max_bytes" ] || fail "$binary is larger than $max_bytes bytes"
done

# Only now: what is in there is fit to be installed.
rm -rf "$directory" && mkdir -p "$directory" || exit 1
for binary; do
    cp "$built/$binary" "$directory/" || exit 1
done
echo "They are in $directory; make install puts them in place."

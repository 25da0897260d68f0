# root.sh DIRECTORY PACKAGE...: copies essential packages of Debian, these, and what they depend on into an empty directory,
# as far as they are installed here. Their scripts do not run: the links that those would make are made at the end.
set -eu
root=$1
shift
essential=$(dpkg-query -Wf '${Essential} ${Package}\n' | sed -n 's/^yes //p')
packages=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances $essential "$@" | grep '^[a-z0-9]' | sort -u)
for dir in bin sbin lib lib64; do
    mkdir -p "$root/usr/$dir"
    ln -s "usr/$dir" "$root/$dir"
done
mkdir -p "$root/tmp" "$root/proc" "$root/dev" "$root/root" "$root/rust"
dpkg-query -L $packages | sort -u | grep -v '^/usr/share/\(doc\|man\|locale\|info\)/' |
    while read -r file; do
        if [ -L "$file" ] || [ -f "$file" ]; then echo "$file"; fi
    done | tar -C / -cf - --no-recursion -T - 2>/dev/null | tar -C "$root" -xf -
ln -s gcc "$root/usr/bin/cc"
ln -s g++ "$root/usr/bin/c++"

#!/bin/sh
# Fetches Pascal VOC 2007, trainval and test (about 900 MB), into DIR/VOCdevkit/VOC2007:
#
#     bash data/download_voc07.sh [DIR]        # DIR is datasets by default
#
# An interrupted download goes on where it stopped. The checksums are verified before anything is
# extracted, the tars removed after that. Where the set is complete nothing is done.
# VOC_MIRRORS="URL URL" names other folders to fetch the tars from. For tests alone: MD5_TRAINVAL,
# MD5_TEST, COUNT_TRAINVAL and COUNT_TEST say what the tars must be and hold.
# Exit code 0: the set is there; 1: it could not be fetched; 2: DIR cannot be used; 130: interrupted.

set -u
VOC_MIRRORS=${VOC_MIRRORS:-"http://host.robots.ox.ac.uk/pascal/VOC/voc2007 https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"}
TRAINVAL=VOCtrainval_06-Nov-2007.tar
TEST=VOCtest_06-Nov-2007.tar
MD5_TRAINVAL=${MD5_TRAINVAL:-c52e279531787c972589f7e41ab4ae64}
MD5_TEST=${MD5_TEST:-b6e924de25625d8de591ea690078ad9f}
COUNT_TRAINVAL=${COUNT_TRAINVAL:-5011}
COUNT_TEST=${COUNT_TEST:-4952}

say() {
    echo "voc07: $*"
}

fail() { # CODE SENTENCE
    code=$1
    shift
    echo "voc07: error: $*" >&2
    exit "$code"
}

lines() { # FILE: how many lines are not empty
    if [ -f "$1" ]; then grep -c . "$1"; else echo 0; fi
}

files() { # FOLDER SUFFIX: how many files end so
    find "$1" -type f -name "*$2" 2>/dev/null | wc -l
}

complete() { # lists, images and annotations are all there
    year=$DIR/VOCdevkit/VOC2007
    [ "$(lines "$year/ImageSets/Main/trainval.txt")" -eq "$COUNT_TRAINVAL" ] &&
        [ "$(lines "$year/ImageSets/Main/test.txt")" -eq "$COUNT_TEST" ] &&
        [ "$(files "$year/JPEGImages" .jpg)" -ge $((COUNT_TRAINVAL + COUNT_TEST)) ] &&
        [ "$(files "$year/Annotations" .xml)" -ge $((COUNT_TRAINVAL + COUNT_TEST)) ]
}

md5_of() { # FILE
    if command -v md5sum >/dev/null; then
        md5sum <"$1" | cut -d ' ' -f 1
    elif command -v md5 >/dev/null; then
        md5 -q "$1"
    else
        openssl md5 <"$1" | sed 's/.* //'
    fi
}

is_good() { # FILE MD5
    [ -f "$1" ] && [ "$(md5_of "$1")" = "$2" ]
}

download() { # URL FILE: goes on with a file that is there in part
    if command -v curl >/dev/null; then
        quiet= # no meter in a log
        [ -t 2 ] || quiet=-sS
        # shellcheck disable=SC2086
        curl -fL -C - $quiet --connect-timeout 30 -o "$2" "$1"
        code=$?
        if [ $code -eq 33 ]; then # the server cannot go on with a part
            # shellcheck disable=SC2086
            curl -fL $quiet --connect-timeout 30 -o "$2" "$1"
            code=$?
        fi
        return $code
    else
        wget -c --tries=3 --timeout=30 -O "$2" "$1"
    fi
}

fetch() { # NAME MD5: puts a verified tar at DIR/NAME
    tar=$DIR/$1
    if [ -f "$tar" ]; then
        is_good "$tar" "$2" && return
        say "$tar is not the file it should be (its MD5 is not $2); kept as $tar.bad"
        mv -f "$tar" "$tar.bad" || exit 2
    fi
    for mirror in $VOC_MIRRORS; do
        if ! is_good "$tar.part" "$2"; then
            say "fetching $mirror/$1"
            download "$mirror/$1" "$tar.part" || continue
            if ! is_good "$tar.part" "$2"; then
                say "$mirror/$1 is not the file it should be (its MD5 is not $2); removed"
                rm -f "$tar.part"
                continue
            fi
        fi
        mv -f "$tar.part" "$tar" || exit 2
        return
    done
    [ -f "$tar.part" ] && say "kept what was fetched: $tar.part (remove it to begin anew)"
    urls=$(for mirror in $VOC_MIRRORS; do echo "  $mirror/$1"; done)
    fail 1 "$1 could not be fetched from any of
$urls
run this again to go on, or get both files by other means, put them at
  $DIR/$TRAINVAL (MD5 $MD5_TRAINVAL)
  $DIR/$TEST (MD5 $MD5_TEST)
and run this again"
}

case ${1:-} in
-h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
-*) fail 2 "unknown flag $1; usage: bash data/download_voc07.sh [DIR]" ;;
esac
[ $# -le 1 ] || fail 2 "one folder at most; usage: bash data/download_voc07.sh [DIR]"
DIR=${1:-datasets}
trap 'exit 130' INT

mkdir -p "$DIR" 2>/dev/null && [ -d "$DIR" ] || fail 2 "$DIR is no folder and cannot be made one"
if complete; then
    say "$DIR/VOCdevkit/VOC2007 is complete ($COUNT_TRAINVAL trainval, $COUNT_TEST test); nothing to do"
    exit 0
fi
[ -w "$DIR" ] || fail 2 "$DIR cannot be written to; choose another folder"
command -v curl >/dev/null || command -v wget >/dev/null || fail 1 "needs curl or wget; install one"

fetch "$TRAINVAL" "$MD5_TRAINVAL"
fetch "$TEST" "$MD5_TEST"
for name in "$TRAINVAL" "$TEST"; do
    say "extracting $name"
    (cd "$DIR" && tar -xf "$name") || # not tar -f "$DIR/...": a colon would name another machine
        fail 1 "$DIR/$name could not be extracted (is the disk full?); it is kept, run this again"
done
complete || fail 1 "$DIR/VOCdevkit/VOC2007 is not complete after extraction; the tars are kept in $DIR"
rm -f "$DIR/$TRAINVAL" "$DIR/$TEST"
say "$DIR/VOCdevkit/VOC2007 is complete: $COUNT_TRAINVAL trainval and $COUNT_TEST test images"
say "next: python train.py -d voc --root $DIR -v yolox-s"

//! Frames against the RFCs, section by section (RFC 6455 5, 7, 8, 10; RFC 7692 6, 7): what a client
//! sends, the resulting events, the answers. Every row is fed whole, octet by octet and cut at every
//! place, with whole messages and with fragments, and must always give the same result.
//!
//! Octets are written in hex. `M` is the masking key of the RFC's examples, 37 fa 21 3d; what follows it in
//! `'quotes'` (ASCII) or `<hex>` is written unmasked and goes out masked; `*n` repeats. Events say what is
//! received, and end with `fail CODE` where the connection is failed. A Close is answered with its own code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use wshd::proto::ws::connection::{Body, Connection, Event, Io, Kind, Send};
use wshd::proto::ws::deflate::codec::{Codecs, Deflate};
use wshd::proto::ws::deflate::negotiate::{Config, negotiate};
use wshd::proto::ws::extension::Offer;
use wshd::proto::ws::limits::Limits;
use wshd::time::Instant;

/// The state before the client's octets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Setup {
    /// Nothing.
    Open,
    /// We have sent `close(1000)`.
    Closing,
    /// We have sent `ping("a")`, then `ping("b")`.
    Pinged,
    /// Frames up to 200 octets, messages up to 300, two Pings a second.
    Limited,
    /// Frames up to 200 octets, messages up to 100.
    SmallMessages,
    /// permessage-deflate, the client takes its context over.
    Deflate,
    /// permessage-deflate, the client does not.
    DeflateAlone,
    /// `Deflate` with the limits of `Limited`.
    DeflateLimited,
}
use Setup::*;

type Row = (&'static str, &'static str, Setup, &'static str, &'static str, &'static str);

/// Section, name, setup, the client's octets, the events, the server's octets.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    // RFC 6455 5.1: a server fails the connection on a frame that is not masked, and masks none itself.
    ("5.1", "unmasked text", Open, "81 05 48 65 6c 6c 6f", "fail 1002", "88 02 03ea"),
    ("5.1", "unmasked empty text", Open, "81 00", "fail 1002", "88 02 03ea"),
    ("5.1", "unmasked ping", Open, "89 00", "fail 1002", "88 02 03ea"),
    ("5.1", "unmasked close", Open, "88 02 03e8", "fail 1002", "88 02 03ea"),
    ("5.1", "unmasked after a masked one", Open, "82 81 M 'a' 82 01 61", "binary 'a'; fail 1002", "88 02 03ea"),
    // RFC 6455 5.2: reserved bits, opcodes, lengths.
    ("5.2", "text", Open, "81 81 M 'a'", "text 'a'", ""),
    ("5.2", "binary", Open, "82 81 M <ff>", "binary <ff>", ""),
    ("5.2", "RSV1 without extension", Open, "c1 81 M 'a'", "fail 1002", "88 02 03ea"),
    ("5.2", "RSV2", Open, "a1 81 M 'a'", "fail 1002", "88 02 03ea"),
    ("5.2", "RSV3", Open, "91 81 M 'a'", "fail 1002", "88 02 03ea"),
    ("5.2", "all reserved bits", Open, "f2 81 M 'a'", "fail 1002", "88 02 03ea"),
    ("5.2", "RSV1 on ping", Open, "c9 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "RSV2 on pong", Open, "aa 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "RSV3 on close", Open, "98 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "RSV1 on continuation", Open, "01 81 M 'a' c0 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode 3", Open, "83 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode 4", Open, "84 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode 5", Open, "85 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode 6", Open, "86 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode 7", Open, "87 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode b", Open, "8b 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode c", Open, "8c 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode d", Open, "8d 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode e", Open, "8e 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "opcode f", Open, "8f 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "reserved opcode within a message", Open, "01 81 M 'a' 83 80 M", "fail 1002", "88 02 03ea"),
    ("5.2", "length 0, text", Open, "81 80 M", "text ''", ""),
    ("5.2", "length 0, binary", Open, "82 80 M", "binary ''", ""),
    ("5.2", "length 125", Open, "82 fd M 'a'*125", "binary 'a'*125", ""),
    ("5.2", "length 126", Open, "82 fe 007e M 'a'*126", "binary 'a'*126", ""),
    ("5.2", "length 127", Open, "82 fe 007f M 'a'*127", "binary 'a'*127", ""),
    ("5.2", "length 65535", Open, "82 fe ffff M 'a'*65535", "binary 'a'*65535", ""),
    ("5.2", "length 65536", Open, "82 ff 0000000000010000 M 'a'*65536", "binary 'a'*65536", ""),
    ("5.2", "text of length 65536", Open, "81 ff 0000000000010000 M 'a'*65536", "text 'a'*65536", ""),
    ("5.2", "16 bits for 0", Open, "82 fe 0000 M", "fail 1002", "88 02 03ea"),
    ("5.2", "16 bits for 125", Open, "82 fe 007d M 'a'*125", "fail 1002", "88 02 03ea"),
    ("5.2", "64 bits for 0", Open, "82 ff 0000000000000000 M", "fail 1002", "88 02 03ea"),
    ("5.2", "64 bits for 125", Open, "82 ff 000000000000007d M 'a'*125", "fail 1002", "88 02 03ea"),
    ("5.2", "64 bits for 126", Open, "82 ff 000000000000007e M 'a'*126", "fail 1002", "88 02 03ea"),
    ("5.2", "64 bits for 65535", Open, "82 ff 000000000000ffff M", "fail 1002", "88 02 03ea"),
    ("5.2", "64 bits, the highest set", Open, "82 ff 8000000000010000 M", "fail 1002", "88 02 03ea"),
    ("5.2", "64 bits, all set", Open, "82 ff ffffffffffffffff M", "fail 1002", "88 02 03ea"),
    ("5.2", "two messages", Open, "81 81 M 'a' 82 81 M 'b'", "text 'a'; binary 'b'", ""),
    ("5.2", "unfinished header", Open, "81 81 M 'a' 82 fe 01", "text 'a'", ""),
    ("5.2", "unfinished payload", Open, "81 81 M 'a' 82 83 M 'bc'", "text 'a'", ""),
    // RFC 6455 5.3: masking.
    ("5.3", "key of zeros", Open, "82 85 00000000 48 65 6c 6c 6f", "binary 'Hello'", ""),
    ("5.3", "key of ones", Open, "82 81 ffffffff 9e", "binary 'a'", ""),
    ("5.3", "a key for each frame", Open, "02 81 01000000 60 00 81 02000000 60 80 81 03000000 60", "binary 'abc'", ""),
    ("5.3", "phase starts anew in each frame", Open, "02 83 M 'abc' 80 83 M 'def'", "binary 'abcdef'", ""),
    // RFC 6455 5.4: fragmentation.
    ("5.4", "two fragments", Open, "01 81 M 'a' 80 81 M 'b'", "text 'ab'", ""),
    ("5.4", "three fragments", Open, "02 82 M 'ab' 00 81 M 'c' 80 82 M 'de'", "binary 'abcde'", ""),
    ("5.4", "empty first fragment", Open, "01 80 M 80 81 M 'a'", "text 'a'", ""),
    ("5.4", "empty last fragment", Open, "01 81 M 'a' 80 80 M", "text 'a'", ""),
    ("5.4", "empty middle fragments", Open, "01 81 M 'a' 00 80 M 00 80 M 80 81 M 'b'", "text 'ab'", ""),
    ("5.4", "empty fragments only", Open, "01 80 M 00 80 M 80 80 M", "text ''", ""),
    ("5.4", "ping between", Open, "01 81 M 'a' 89 81 M 'p' 80 81 M 'b'", "text 'ab'", "8a 01 'p'"),
    ("5.4", "two pings between", Open, "01 81 M 'a' 89 81 M 'p' 89 80 M 80 80 M", "text 'a'", "8a 01 'p' 8a 00"),
    ("5.4", "pong between", Open, "01 81 M 'a' 8a 81 M 'p' 80 81 M 'b'", "text 'ab'", ""),
    ("5.4", "close between", Open, "01 81 M 'a' 88 82 M <03e8>", "close 1000 ''", "88 02 03e8"),
    ("5.4", "continuation of nothing", Open, "00 81 M 'a'", "fail 1002", "88 02 03ea"),
    ("5.4", "last continuation of nothing", Open, "80 81 M 'a'", "fail 1002", "88 02 03ea"),
    ("5.4", "continuation after a whole message", Open, "81 81 M 'a' 80 81 M 'b'", "text 'a'; fail 1002", "88 02 03ea"),
    ("5.4", "continuation after a fragmented one", Open, "01 80 M 80 81 M 'a' 80 80 M", "text 'a'; fail 1002", "88 02 03ea"),
    ("5.4", "continuation after a ping", Open, "89 80 M 80 80 M", "fail 1002", "8a 00 88 02 03ea"),
    ("5.4", "text within text", Open, "01 81 M 'a' 81 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("5.4", "first fragment within text", Open, "01 81 M 'a' 01 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("5.4", "binary within text", Open, "01 81 M 'a' 82 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("5.4", "text within binary", Open, "02 81 M 'a' 81 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("5.4", "messages after one another", Open, "01 81 M 'a' 80 80 M 02 80 M 80 81 M 'b' 81 81 M 'c'", "text 'a'; binary 'b'; text 'c'", ""),
    // RFC 6455 5.5: control frames are at most 125 octets and not fragmented.
    ("5.5", "fragmented ping", Open, "09 81 M 'a' 80 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("5.5", "fragmented pong", Open, "0a 80 M", "fail 1002", "88 02 03ea"),
    ("5.5", "fragmented close", Open, "08 80 M", "fail 1002", "88 02 03ea"),
    ("5.5", "ping of 126", Open, "89 fe 007e M 'a'*126", "fail 1002", "88 02 03ea"),
    ("5.5", "pong of 126", Open, "8a fe 007e M 'a'*126", "fail 1002", "88 02 03ea"),
    ("5.5", "close of 126", Open, "88 fe 007e M <03e8> 'a'*124", "fail 1002", "88 02 03ea"),
    ("5.5", "ping with a 64-bit length", Open, "89 ff 0000000000010000 M", "fail 1002", "88 02 03ea"),
    // RFC 6455 5.5.1: Close.
    ("5.5.1", "empty", Open, "88 80 M", "close 1005 ''", "88 00"),
    ("5.5.1", "code", Open, "88 82 M <03e8>", "close 1000 ''", "88 02 03e8"),
    ("5.5.1", "code and reason", Open, "88 85 M <03e9> 'bye'", "close 1001 'bye'", "88 02 03e9"),
    ("5.5.1", "reason in UTF-8", Open, "88 84 M <03e8 c3a9>", "close 1000 <c3a9>", "88 02 03e8"),
    ("5.5.1", "longest reason", Open, "88 fd M <03e8> 'a'*123", "close 1000 'a'*123", "88 02 03e8"),
    ("5.5.1", "one octet", Open, "88 81 M <03>", "fail 1002", "88 02 03ea"),
    ("5.5.1", "reason not UTF-8", Open, "88 83 M <03e8 ff>", "fail 1007", "88 02 03ef"),
    ("5.5.1", "reason cut within a character", Open, "88 84 M <03e8 e282>", "fail 1007", "88 02 03ef"),
    ("5.5.1", "frames after it are not read", Open, "88 80 M 81 81 M 'a' 83 00 89 80 M", "close 1005 ''", "88 00"),
    ("5.5.1", "message before it", Open, "82 81 M 'a' 88 80 M", "binary 'a'; close 1005 ''", "88 00"),
    // RFC 6455 5.5.2, 5.5.3: Ping and Pong.
    ("5.5.2", "empty", Open, "89 80 M", "", "8a 00"),
    ("5.5.2", "payload", Open, "89 85 M 'Hello'", "", "8a 05 'Hello'"),
    ("5.5.2", "any octets", Open, "89 84 M <00ff80fe>", "", "8a 04 00ff80fe"),
    ("5.5.2", "125 octets", Open, "89 fd M 'p'*125", "", "8a 7d 'p'*125"),
    ("5.5.2", "each in order", Open, "89 81 M 'a' 89 81 M 'b' 89 81 M 'c'", "", "8a 01 'a' 8a 01 'b' 8a 01 'c'"),
    ("5.5.2", "before and after a message", Open, "89 81 M 'a' 81 81 M 'm' 89 81 M 'b'", "text 'm'", "8a 01 'a' 8a 01 'b'"),
    ("5.5.3", "unsolicited", Open, "8a 80 M 8a 81 M 'x'", "", ""),
    ("5.5.3", "125 octets, unsolicited", Open, "8a fd M 'x'*125", "", ""),
    ("5.5.3", "answers the newest", Pinged, "8a 81 M 'b'", "pong 'b'", ""),
    ("5.5.3", "older and newest", Pinged, "8a 81 M 'a' 8a 81 M 'b'", "pong 'b'", ""),
    ("5.5.3", "twice", Pinged, "8a 81 M 'b' 8a 81 M 'b'", "pong 'b'", ""),
    ("5.5.3", "within a message", Pinged, "01 81 M 'm' 8a 81 M 'b' 80 80 M", "pong 'b'; text 'm'", ""),
    // RFC 6455 5.6: data frames.
    ("5.6", "text in UTF-8", Open, "81 8b M <ceba e1bdb9 cf83 cebc ceb5>", "text <cebae1bdb9cf83cebcceb5>", ""),
    ("5.6", "binary need not be UTF-8", Open, "82 84 M <ff fe c0 80>", "binary <fffec080>", ""),
    ("5.6", "NUL in text", Open, "81 83 M <61 00 62>", "text <610062>", ""),
    // RFC 6455 5.7: the examples that a client may send, and those that it may not.
    ("5.7", "unmasked text", Open, "81 05 48 65 6c 6c 6f", "fail 1002", "88 02 03ea"),
    ("5.7", "masked text", Open, "81 85 37 fa 21 3d 7f 9f 4d 51 58", "text 'Hello'", ""),
    ("5.7", "unmasked fragments", Open, "01 03 48 65 6c 80 02 6c 6f", "fail 1002", "88 02 03ea"),
    ("5.7", "masked pong", Open, "8a 85 37 fa 21 3d 7f 9f 4d 51 58", "", ""),
    ("5.7", "256 octets, here masked", Open, "82 fe 01 00 M 'x'*256", "binary 'x'*256", ""),
    ("5.7", "64 KiB, here masked", Open, "82 ff 00 00 00 00 00 01 00 00 M 'x'*65536", "binary 'x'*65536", ""),
    // RFC 6455 7.1: closing and failing.
    ("7.1.2", "we close first, the peer answers", Closing, "88 82 M <03e8>", "closed 1000 ''", ""),
    ("7.1.2", "we close first, the peer's own Close", Closing, "88 85 M <0bb8> 'bye'", "closed 3000 'bye'", ""),
    ("7.1.2", "messages on their way are dropped", Closing, "81 81 M 'a' 01 81 M 'b' 88 80 M", "closed 1005 ''", ""),
    ("7.1.2", "no Pong after our Close", Closing, "89 81 M 'a' 88 80 M", "closed 1005 ''", ""),
    ("7.1.2", "what follows both is not read", Closing, "88 80 M 83 00", "closed 1005 ''", ""),
    ("7.1.2", "still the protocol: opcode", Closing, "83 80 M", "fail 1002", ""),
    ("7.1.2", "still the protocol: UTF-8", Closing, "81 81 M <ff>", "fail 1007", ""),
    ("7.1.2", "still the protocol: code", Closing, "88 82 M <03ed>", "fail 1002", ""),
    ("7.1.5", "no code is 1005", Open, "88 80 M", "close 1005 ''", "88 00"),
    ("7.1.6", "no reason is empty", Open, "88 82 M <0bb8>", "close 3000 ''", "88 02 0bb8"),
    ("7.1.7", "nothing is read after a failure", Open, "83 80 M 81 81 M 'a' 89 80 M 88 80 M", "fail 1002", "88 02 03ea"),
    ("7.1.7", "what came before counts", Open, "81 81 M 'a' 89 80 M 83 80 M", "text 'a'; fail 1002", "8a 00 88 02 03ea"),
    // RFC 6455 7.4: codes.
    ("7.4.1", "1000", Open, "88 82 M <03e8>", "close 1000 ''", "88 02 03e8"),
    ("7.4.1", "1001", Open, "88 82 M <03e9>", "close 1001 ''", "88 02 03e9"),
    ("7.4.1", "1002", Open, "88 82 M <03ea>", "close 1002 ''", "88 02 03ea"),
    ("7.4.1", "1003", Open, "88 82 M <03eb>", "close 1003 ''", "88 02 03eb"),
    ("7.4.1", "1004 is reserved", Open, "88 82 M <03ec>", "fail 1002", "88 02 03ea"),
    ("7.4.1", "1005 must not be sent", Open, "88 82 M <03ed>", "fail 1002", "88 02 03ea"),
    ("7.4.1", "1006 must not be sent", Open, "88 82 M <03ee>", "fail 1002", "88 02 03ea"),
    ("7.4.1", "1007", Open, "88 82 M <03ef>", "close 1007 ''", "88 02 03ef"),
    ("7.4.1", "1008", Open, "88 82 M <03f0>", "close 1008 ''", "88 02 03f0"),
    ("7.4.1", "1009", Open, "88 82 M <03f1>", "close 1009 ''", "88 02 03f1"),
    ("7.4.1", "1010", Open, "88 82 M <03f2>", "close 1010 ''", "88 02 03f2"),
    ("7.4.1", "1011", Open, "88 82 M <03f3>", "close 1011 ''", "88 02 03f3"),
    ("7.4.1", "1012, registered later", Open, "88 82 M <03f4>", "close 1012 ''", "88 02 03f4"),
    ("7.4.1", "1013, registered later", Open, "88 82 M <03f5>", "close 1013 ''", "88 02 03f5"),
    ("7.4.1", "1014, registered later", Open, "88 82 M <03f6>", "close 1014 ''", "88 02 03f6"),
    ("7.4.1", "1015 must not be sent", Open, "88 82 M <03f7>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "0", Open, "88 82 M <0000>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "999", Open, "88 82 M <03e7>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "1016", Open, "88 82 M <03f8>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "1100", Open, "88 82 M <044c>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "2000", Open, "88 82 M <07d0>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "2999", Open, "88 82 M <0bb7>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "3000", Open, "88 82 M <0bb8>", "close 3000 ''", "88 02 0bb8"),
    ("7.4.2", "3999", Open, "88 82 M <0f9f>", "close 3999 ''", "88 02 0f9f"),
    ("7.4.2", "4000", Open, "88 82 M <0fa0>", "close 4000 ''", "88 02 0fa0"),
    ("7.4.2", "4999", Open, "88 82 M <1387>", "close 4999 ''", "88 02 1387"),
    ("7.4.2", "5000", Open, "88 82 M <1388>", "fail 1002", "88 02 03ea"),
    ("7.4.2", "65535", Open, "88 82 M <ffff>", "fail 1002", "88 02 03ea"),
    // RFC 6455 8.1: text that is not UTF-8 (RFC 3629).
    ("8.1", "continuation octet alone", Open, "81 81 M <80>", "fail 1007", "88 02 03ef"),
    ("8.1", "overlong slash", Open, "81 82 M <c0af>", "fail 1007", "88 02 03ef"),
    ("8.1", "overlong in three octets", Open, "81 83 M <e080af>", "fail 1007", "88 02 03ef"),
    ("8.1", "overlong in four octets", Open, "81 84 M <f08080af>", "fail 1007", "88 02 03ef"),
    ("8.1", "surrogate", Open, "81 83 M <eda080>", "fail 1007", "88 02 03ef"),
    ("8.1", "pair of surrogates", Open, "81 86 M <eda080edb080>", "fail 1007", "88 02 03ef"),
    ("8.1", "U+10FFFF", Open, "81 84 M <f48fbfbf>", "text <f48fbfbf>", ""),
    ("8.1", "U+110000", Open, "81 84 M <f4908080>", "fail 1007", "88 02 03ef"),
    ("8.1", "form of five octets", Open, "81 85 M <f888808080>", "fail 1007", "88 02 03ef"),
    ("8.1", "U+FFFF is a scalar value", Open, "81 83 M <efbfbf>", "text <efbfbf>", ""),
    ("8.1", "cut at the end", Open, "81 82 M <e282>", "fail 1007", "88 02 03ef"),
    ("8.1", "character over two fragments", Open, "01 81 M <c3> 80 81 M <a9>", "text <c3a9>", ""),
    ("8.1", "character over four fragments", Open, "01 81 M <f0> 00 81 M <9f> 00 81 M <98> 80 81 M <80>", "text <f09f9880>", ""),
    ("8.1", "character over fragments and a ping", Open, "01 82 M <e282> 89 80 M 80 81 M <ac>", "text <e282ac>", "8a 00"),
    ("8.1", "cut at the end of the last fragment", Open, "01 82 M <e282> 80 80 M", "fail 1007", "88 02 03ef"),
    ("8.1", "bad second fragment", Open, "01 81 M <c3> 80 81 M 'a'", "fail 1007", "88 02 03ef"),
    ("8.1", "bad first fragment, no second", Open, "01 81 M <ff>", "fail 1007", "88 02 03ef"),
    ("8.1", "bad octet far into a long text", Open, "81 fe 00c9 M 'a'*200 <ff>", "fail 1007", "88 02 03ef"),
    ("8.1", "bad octet of an unfinished frame", Open, "81 ff 0000000000010000 M 'a'*100 <c080>", "fail 1007", "88 02 03ef"),
    ("8.1", "each message by itself", Open, "01 81 M <c3> 80 81 M <a9> 81 81 M <a9>", "text <c3a9>; fail 1007", "88 02 03ef"),
    // RFC 6455 10.4: limits. The header is enough.
    ("10.4", "frame at the limit", Limited, "82 fe 00c8 M 'a'*200", "binary 'a'*200", ""),
    ("10.4", "frame over the limit", Limited, "82 fe 00c9 M", "fail 1009", "88 02 03f1"),
    ("10.4", "frame of 2^63-1", Limited, "82 ff 7fffffffffffffff M", "fail 1009", "88 02 03f1"),
    ("10.4", "message at the limit", Limited, "02 fe 00c8 M 'a'*200 80 e4 M 'a'*100", "binary 'a'*300", ""),
    ("10.4", "message over the limit", Limited, "02 fe 00c8 M 'a'*200 80 e5 M", "fail 1009", "88 02 03f1"),
    ("10.4", "over the limit by small fragments", Limited, "02 fd M 'a'*125 00 fd M 'a'*125 00 b2 M 'a'*50 00 81 M", "fail 1009", "88 02 03f1"),
    ("10.4", "message in one frame at the limit", SmallMessages, "81 e4 M 'a'*100", "text 'a'*100", ""),
    ("10.4", "message in one frame over the limit", SmallMessages, "81 e5 M 'a'*101", "fail 1009", "88 02 03f1"),
    ("10.4", "2^63-1 with the default limits", Open, "81 ff 7fffffffffffffff M", "fail 1009", "88 02 03f1"),
    ("10.4", "pings at the limit", Limited, "89 81 M 'a' 89 81 M 'b'", "", "8a 01 'a' 8a 01 'b'"),
    ("10.4", "pings over the limit", Limited, "89 81 M 'a' 89 81 M 'b' 89 81 M 'c'", "fail 1008", "8a 01 'a' 8a 01 'b' 88 02 03f0"),
    // RFC 7692 6: RSV1 is the first fragment's.
    ("7692 6", "not compressed all the same", Deflate, "81 85 M 'Hello'", "text 'Hello'", ""),
    ("7692 6", "RSV1 on continuation", Deflate, "41 83 M <f248cd> c0 84 M <c9c90700>", "fail 1002", "88 02 03ea"),
    ("7692 6", "RSV1 on continuation of an uncompressed one", Deflate, "01 81 M 'a' c0 81 M 'b'", "fail 1002", "88 02 03ea"),
    ("7692 6", "RSV1 on ping", Deflate, "c9 80 M", "fail 1002", "88 02 03ea"),
    ("7692 6", "RSV1 on pong", Deflate, "ca 80 M", "fail 1002", "88 02 03ea"),
    ("7692 6", "RSV1 on close", Deflate, "c8 80 M", "fail 1002", "88 02 03ea"),
    ("7692 6", "RSV2 stays reserved", Deflate, "a1 80 M", "fail 1002", "88 02 03ea"),
    // RFC 7692 7.2.3: the examples.
    ("7692 7.2.3.1", "one block", Deflate, "c1 87 M <f248cdc9c90700>", "text* 'Hello'", ""),
    ("7692 7.2.3.1", "one block, no takeover", DeflateAlone, "c1 87 M <f248cdc9c90700> c1 87 M <f248cdc9c90700>", "text* 'Hello'; text* 'Hello'", ""),
    ("7692 7.2.3.1", "two fragments", Deflate, "41 83 M <f248cd> 80 84 M <c9c90700>", "text* 'Hello'", ""),
    ("7692 7.2.3.1", "two fragments, a ping between", Deflate, "41 83 M <f248cd> 89 81 M 'p' 80 84 M <c9c90700>", "text* 'Hello'", "8a 01 'p'"),
    ("7692 7.2.3.1", "a close between", Deflate, "41 83 M <f248cd> 88 82 M <03e8>", "close 1000 ''", "88 02 03e8"),
    ("7692 7.2.3.1", "empty fragments", Deflate, "41 80 M 00 87 M <f248cdc9c90700> 80 80 M", "text* 'Hello'", ""),
    ("7692 7.2.3.2", "the window is shared", Deflate, "c1 87 M <f248cdc9c90700> c1 85 M <f200110000>", "text* 'Hello'; text* 'Hello'", ""),
    ("7692 7.2.3.2", "an uncompressed message between", Deflate, "c1 87 M <f248cdc9c90700> 81 81 M 'a' c1 85 M <f200110000>", "text* 'Hello'; text 'a'; text* 'Hello'", ""),
    ("7692 7.2.3.2", "not without takeover", DeflateAlone, "c1 87 M <f248cdc9c90700> c1 85 M <f200110000>", "text* 'Hello'; fail 1007", "88 02 03ef"),
    ("7692 7.2.3.3", "stored block", Deflate, "c1 8b M <00 05 00 fa ff 48 65 6c 6c 6f 00>", "text* 'Hello'", ""),
    ("7692 7.2.3.4", "BFINAL", Deflate, "c1 88 M <f348cdc9c9070000>", "text* 'Hello'", ""),
    ("7692 7.2.3.4", "BFINAL, no takeover", DeflateAlone, "c1 88 M <f348cdc9c9070000>", "text* 'Hello'", ""),
    ("7692 7.2.3.5", "two blocks", Deflate, "c1 8d M <f248050000 00ffff cac9c90700>", "text* 'Hello'", ""),
    ("7692 7.2.3.6", "empty message", Deflate, "c1 81 M <00>", "text* ''", ""),
    ("7692 7.2.2", "reserved block type", Deflate, "c2 81 M <ff>", "fail 1007", "88 02 03ef"),
    ("7692 7.2.2", "stored length that does not match", Deflate, "c2 85 M <0005000000>", "fail 1007", "88 02 03ef"),
    ("7692 7.2.2", "text that is not UTF-8", Deflate, "c1 87 M <00 01 00 fe ff ff 00>", "fail 1007", "88 02 03ef"),
    ("7692 7.2.2", "the same octets as binary", Deflate, "c2 87 M <00 01 00 fe ff ff 00>", "binary* <ff>", ""),
    ("7692 7.2.2", "text cut within a character", Deflate, "c1 88 M <00 02 00 fd ff e2 82 00>", "fail 1007", "88 02 03ef"),
    ("7692 8", "frame over the limit", DeflateLimited, "c2 fe 00c9 M", "fail 1009", "88 02 03f1"),
];

#[test]
fn every_row_at_every_cut() {
    for row in ROWS {
        let (_, _, _, input, events, out) = *row;
        let (input, out) = (octets(input), octets(out));
        for stream in [false, true] {
            check(row, stream, &input, &[], events, &out);
            check(row, stream, &input, &(1..input.len()).collect::<Vec<_>>(), events, &out);
            // In long payloads most places are equivalent.
            for cut in 1..input.len() {
                if cut < 300 || input.len() - cut < 30 || cut % 8192 == 0 {
                    check(row, stream, &input, &[cut], events, &out);
                }
            }
        }
    }
}

#[test]
fn a_wrong_row_is_detected() {
    let names: BTreeSet<_> = ROWS.iter().map(|row| (row.0, row.1)).collect();
    assert_eq!(names.len(), ROWS.len());
}

#[track_caller]
fn check(row: &Row, stream: bool, input: &[u8], cuts: &[usize], events: &str, out: &[u8]) {
    let (got, got_out) = feed(row.2, stream, input, cuts);
    let place = match cuts {
        [] => "whole".to_owned(),
        [cut] => format!("cut at {cut}"),
        _ => "octet by octet".to_owned(),
    };
    assert_eq!(got, events, "{} {:?}, {place}, stream {stream}: events", row.0, row.1);
    assert_eq!(got_out, out, "{} {:?}, {place}, stream {stream}: answers", row.0, row.1);
}

/// Feeds a connection and returns its events and answers.
fn feed(setup: Setup, stream: bool, input: &[u8], cuts: &[usize]) -> (String, Vec<u8>) {
    let limits = match setup {
        Limited | DeflateLimited => {
            Limits { frame: 200, message: 300, pings_per_second: 2, ..Limits::default() }
        }
        SmallMessages => Limits { frame: 200, message: 100, ..Limits::default() },
        _ => Limits::default(),
    };
    let deflate = match setup {
        Deflate | DeflateLimited => Some(deflate(false)),
        DeflateAlone => Some(deflate(true)),
        _ => None,
    };
    let mut connection = Connection::new(Instant::default(), deflate, stream);
    let (mut codecs, mut out) = (Codecs::new(), Vec::new());
    let mut io = Io { now: Instant::default(), limits: &limits, codecs: &mut codecs, out: &mut out };
    match setup {
        Closing => connection.close(Some(1000), b"", &mut io).unwrap(),
        Pinged => {
            connection.ping(b"a", &mut io).unwrap();
            connection.ping(b"b", &mut io).unwrap();
        }
        _ => {}
    }
    io.out.clear();

    let mut events = Vec::new();
    let mut parts = Vec::new();
    let mut start = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        let mut piece = input[start..end].to_vec();
        start = end;
        let mut at = 0;
        loop {
            let event = connection.receive(&mut piece, &mut at, &mut io);
            match event {
                Event::NeedMore => break,
                Event::Empty | Event::Ping { .. } => {}
                Event::Message { kind, first, last, compressed, body } => {
                    assert_eq!(first, parts.is_empty(), "first of the parts");
                    assert!(stream || (first && last));
                    parts.push(owned(body, &piece));
                    if last {
                        let text = if kind == Kind::Text { "text" } else { "binary" };
                        let star = if compressed { "*" } else { "" };
                        events.push(format!("{text}{star} {}", show(&parts.concat())));
                        parts.clear();
                    }
                }
                Event::Pong { body, rtt } => {
                    assert_eq!(rtt, std::time::Duration::ZERO);
                    events.push(format!("pong {}", show(&owned(body, &piece))));
                }
                Event::CloseReceived { code, reason } => {
                    events.push(format!("close {code} {}", show(&owned(reason, &piece))));
                    connection.close((code != 1005).then_some(code), b"", &mut io).unwrap();
                    assert!(connection.is_finished());
                }
                Event::Closed { code, reason } => {
                    events.push(format!("closed {code} {}", show(&owned(reason, &piece))));
                    assert!(connection.is_finished());
                }
                Event::Failed { code, .. } => {
                    events.push(format!("fail {code}"));
                    assert!(connection.is_finished());
                }
            }
        }
        assert_eq!(at, piece.len(), "NeedMore means that the input is used up");
    }
    (events.join("; "), out)
}

fn deflate(client_no_context_takeover: bool) -> Deflate {
    let config = Config { client_no_context_takeover, ..Config::default() };
    let offer = Offer { name: "permessage-deflate".into(), params: vec![] };
    Deflate::new(negotiate(&[offer], &config).unwrap(), config.threshold, config.level)
}

fn owned(body: Body, input: &[u8]) -> Vec<u8> {
    if let Body::Owned(gathered) = &body {
        assert!(gathered.capacity() > gathered.len(), "no room for a NUL");
    }
    body.octets(input).to_vec()
}

/// Octets as the rows write them.
fn show(data: &[u8]) -> String {
    match data {
        [octet, rest @ ..] if rest.len() > 50 && rest.iter().all(|other| other == octet) => {
            format!("'{}'*{}", char::from(*octet), data.len())
        }
        _ if data.iter().all(u8::is_ascii_graphic) => format!("'{}'", String::from_utf8_lossy(data)),
        _ => format!("<{}>", data.iter().map(|octet| format!("{octet:02x}")).collect::<String>()),
    }
}

/// The octets of a row; see the top.
fn octets(row: &str) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let hex = |digits: &str| -> Vec<u8> {
        assert!(digits.len().is_multiple_of(2), "{row}: {digits}");
        (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
    };
    let mut octets = Vec::new();
    // The start of the payload that is being masked.
    let mut masked_from = None;
    let mut rest = row.trim_start();
    while let Some(sign) = rest.chars().next() {
        let (payload, length) = match sign {
            'M' => {
                octets.extend(KEY);
                masked_from = Some(octets.len());
                rest = rest[1..].trim_start();
                continue;
            }
            '\'' => {
                let text = rest[1..].split('\'').next().unwrap();
                (text.as_bytes().to_vec(), text.len() + 2)
            }
            '<' => {
                let digits = rest[1..].split('>').next().unwrap();
                (hex(&digits.replace(' ', "")), digits.len() + 2)
            }
            _ => {
                let digits = rest.split(' ').next().unwrap();
                octets.extend(hex(digits));
                masked_from = None;
                rest = rest[digits.len()..].trim_start();
                continue;
            }
        };
        rest = &rest[length..];
        let mut times = 1;
        if let Some(number) = rest.strip_prefix('*') {
            let number = number.split(' ').next().unwrap();
            times = number.parse().unwrap();
            rest = &rest[number.len() + 1..];
        }
        for octet in payload.repeat(times) {
            octets.push(masked_from.map_or(octet, |from| octet ^ KEY[(octets.len() - from) % 4]));
        }
        rest = rest.trim_start();
    }
    octets
}

/// RFC 6455 5.7: the examples sent by a server.
#[test]
fn examples_of_frames_sent_by_a_server() {
    let limits = Limits::default();
    let mut connection = Connection::new(Instant::default(), None, false);
    let (mut codecs, mut out) = (Codecs::new(), Vec::new());
    let mut io = Io { now: Instant::default(), limits: &limits, codecs: &mut codecs, out: &mut out };
    let mut sent = |kind, data: &[u8], more| {
        io.out.clear();
        connection.send(kind, data, Send { more, ..Send::default() }, &mut io).unwrap();
        io.out.clone()
    };
    assert_eq!(sent(Kind::Text, b"Hello", false), octets("81 05 48 65 6c 6c 6f"));
    assert_eq!(sent(Kind::Text, b"Hel", true), octets("01 03 48 65 6c"));
    assert_eq!(sent(Kind::Text, b"lo", false), octets("80 02 6c 6f"));
    assert_eq!(sent(Kind::Binary, &[b'x'; 256], false), octets("82 7e 01 00 'x'*256"));
    assert_eq!(sent(Kind::Binary, &[b'x'; 65536], false), octets("82 7f 00 00 00 00 00 01 00 00 'x'*65536"));
    io.out.clear();
    connection.ping(b"Hello", &mut io).unwrap();
    assert_eq!(*io.out, octets("89 05 48 65 6c 6c 6f"));
}

/// Invalid UTF-8 is refused at the octet that makes it invalid, within a frame and across fragments
/// (RFC 6455 8.1), and not before.
#[test]
fn text_fails_at_the_first_bad_octet() {
    // A payload of 65536 octets is announced; the text stops being UTF-8 with the octet on the right.
    for (good, bad) in [
        ("", "80"),
        ("6162", "ff"),
        ("e2", "28"),
        ("ed", "a0"),
        ("f09f", "c0"),
        ("f4", "90"),
        ("c3a9e282", "61"),
    ] {
        for fragments in [false, true] {
            let good = octets(&format!("<{good}>"));
            let bad = octets(&format!("<{bad}>"));
            let frames = |data: &[u8]| -> Vec<u8> {
                if !fragments {
                    return [octets("81 ff 0000000000010000 00000000"), data.to_vec()].concat();
                }
                let each = data.iter().map(|&octet| vec![0x00, 0x81, 0, 0, 0, 0, octet]);
                [octets("01 80 00000000"), each.collect::<Vec<_>>().concat()].concat()
            };
            assert_eq!(feed(Open, false, &frames(&good), &[]).0, "");
            assert_eq!(feed(Open, false, &frames(&[good, bad].concat()), &[]).0, "fail 1007");
        }
    }
}

/// RFC 7692 8: inflating a small message to a large one stops at the limit.
#[test]
fn an_inflate_bomb_stops_at_the_limit() {
    let compressed = |len: usize| {
        let mut out = Vec::new();
        deflate(true).compress(&mut Codecs::new(), &vec![b'a'; len], true, &mut out);
        assert!(out.len() < 126);
        let mut frame = vec![0xc2, 0x80 | out.len() as u8, 0, 0, 0, 0];
        frame.extend(out);
        frame
    };
    for stream in [false, true] {
        assert_eq!(feed(DeflateLimited, stream, &compressed(300), &[]).0, "binary* 'a'*300");
        for len in [301, 50_000] {
            let input = compressed(len);
            for cut in 0..input.len() {
                assert_eq!(feed(DeflateLimited, stream, &input, &[cut]).0, "fail 1009", "{len} cut at {cut}");
            }
        }
    }
}

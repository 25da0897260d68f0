//! Micro-benchmarks of the protocol core: what each stage of a message costs by itself.
//!
//! `cargo bench --bench proto`, with a name behind it for a part.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wshd::proto::http1::head::{self, Head, HeadLimits, Parsed};
use wshd::proto::ws::connection::{Connection, Event, Io, Send};
use wshd::proto::ws::deflate::codec::{Codecs, Deflate};
use wshd::proto::ws::deflate::negotiate::{Config, negotiate};
use wshd::proto::ws::extension::Offer;
use wshd::proto::ws::frame::{self, Opcode};
use wshd::proto::ws::handshake;
use wshd::proto::ws::limits::Limits;
use wshd::proto::ws::mask::Mask;
use wshd::proto::ws::utf8::Validator;
use wshd::time::Instant;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a browser sends.
const REQUEST: &str = "GET /echo?a=1 HTTP/1.1\r\nHost: server.example.com:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux \
    x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: */*\r\nAccept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nSec-WebSocket-Version: 13\r\nOrigin: http://server.example.com:8080\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Connection: keep-alive, Upgrade\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nPragma: no-cache\r\n\
    Cache-Control: no-cache\r\nUpgrade: websocket\r\n\r\n";

fn parsed() -> Head {
    match head::parse(REQUEST.as_bytes(), &HeadLimits { bytes: 16 << 10, headers: 100 }) {
        Ok(Parsed::Head { head, .. }) => head,
        _ => panic!("the request is valid"),
    }
}

fn opening(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    group.bench_function("parse", |b| {
        b.iter(|| {
            head::parse(black_box(REQUEST.as_bytes()), &HeadLimits { bytes: 16 << 10, headers: 100 }).is_ok()
        })
    });
    let head = parsed();
    group.bench_function("check", |b| b.iter(|| handshake::check(black_box(&head)).is_ok()));
    let opening = handshake::check(&head).unwrap();
    let mut out = Vec::with_capacity(1024);
    group.bench_function("answer", |b| {
        b.iter(|| {
            out.clear();
            handshake::write_switching(&mut out, black_box(&opening), None, Some("permessage-deflate"), &[]);
        })
    });
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for len in [20, 1024, 65_536] {
        let wire = client_frame(Opcode::Binary, &vec![0; len]);
        group.bench_function(format!("decode header of {len}"), |b| {
            b.iter(|| frame::decode(black_box(&wire), false).is_ok())
        });
    }
}

fn masking(c: &mut Criterion) {
    let mut group = c.benchmark_group("unmask");
    for len in [20, 1024, 65_536, 1 << 20] {
        let mut data = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |b| b.iter(|| Mask::new(KEY).apply(black_box(&mut data))));
    }
}

fn utf8(c: &mut Criterion) {
    let mut group = c.benchmark_group("utf8");
    for (name, sample) in [("ascii", "plain text "), ("mixed", "aä水🌻")] {
        for len in [20, 1024, 65_536, 1 << 20] {
            let text = &sample.repeat(len / sample.len() + 1).into_bytes()[..len];
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("{name} {len}"), |b| {
                b.iter(|| Validator::default().feed(black_box(text)).is_ok())
            });
        }
    }
}

fn compression(c: &mut Criterion) {
    let mut group = c.benchmark_group("deflate");
    let text = json(1024);
    group.throughput(Throughput::Bytes(text.len() as u64));
    let mut out = Vec::with_capacity(4096);
    for (name, takeover) in [("own message", false), ("context taken over", true)] {
        let (mut codecs, mut deflate) = (Codecs::new(), agreed(takeover));
        group.bench_function(format!("compress, {name}"), |b| {
            b.iter(|| {
                out.clear();
                deflate.compress(&mut codecs, black_box(&text), true, &mut out);
            })
        });
    }
    let (mut codecs, mut deflate) = (Codecs::new(), agreed(false));
    let mut wire = Vec::new();
    deflate.compress(&mut codecs, &text, true, &mut wire);
    group.bench_function("inflate", |b| {
        b.iter(|| {
            out.clear();
            deflate.inflate(&mut codecs, black_box(&wire), true, 1 << 20, &mut out).is_ok()
        })
    });
}

/// A message through the whole core, there and back.
fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("echo");
    for (kind, len) in
        [(Opcode::Binary, 20), (Opcode::Binary, 1024), (Opcode::Text, 1024), (Opcode::Binary, 65_536)]
    {
        let wire = client_frame(kind, &json(len));
        let (limits, mut codecs, mut out) = (Limits::default(), Codecs::new(), Vec::with_capacity(len + 16));
        let mut connection = Connection::new(Instant::default(), None, false);
        group.throughput(Throughput::Bytes(len as u64));
        // The input is unmasked in place: each turn has a fresh copy, which is not timed.
        group.bench_function(format!("{kind:?} {len}"), |b| {
            b.iter_batched_ref(
                || wire.clone(),
                |input| {
                    out.clear();
                    let mut io = Io {
                        now: Instant::from_nanos(1),
                        limits: &limits,
                        codecs: &mut codecs,
                        out: &mut out,
                    };
                    let Event::Message { kind, body, .. } = connection.receive(input, &mut 0, &mut io) else {
                        panic!()
                    };
                    connection
                        .send(kind, body.octets(input), Send { trusted: true, ..Send::default() }, &mut io)
                        .is_ok()
                },
                BatchSize::SmallInput,
            )
        });
    }
}

fn agreed(takeover: bool) -> Deflate {
    let config = Config { server_no_context_takeover: !takeover, ..Config::default() };
    let offer = Offer { name: "permessage-deflate".to_owned(), params: Vec::new() };
    Deflate::new(negotiate(&[offer], &config).unwrap(), config.threshold, config.level)
}

fn client_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    frame::encode(&mut wire, opcode, true, false, payload.len());
    wire[1] |= 0x80;
    wire.extend_from_slice(&KEY);
    wire.extend(payload.iter().zip(KEY.iter().cycle()).map(|(octet, key)| octet ^ key));
    wire
}

/// Text such as programs exchange.
fn json(len: usize) -> Vec<u8> {
    let item = |n: usize| {
        format!(
            "{{\"id\":{},\"name\":\"item {n}\",\"price\":{}.99,\"tags\":[\"a\",\"b\"]}},",
            n * 7919 % 99991,
            n * 31 % 500
        )
    };
    (0..).flat_map(|n| item(n).into_bytes()).take(len).collect()
}

criterion_group!(benches, opening, frames, masking, utf8, compression, echo);
criterion_main!(benches);

use super::*;
use crate::fleet::sockets::facts::GatewayFacts;
use crate::worker::conn::record::foreign::Arrival;

fn strings(resource: &str) -> Strings<&[u8]> {
    Strings { resource: resource.as_bytes(), origin: Some(b"https://example.com"), ..Strings::default() }
}

#[test]
fn a_record_keeps_short_and_long_strings() {
    let mut records = Records::map(2).unwrap();
    for resource in ["/echo".to_owned(), format!("/{}", "long".repeat(500))] {
        let record = records.get_mut(1).unwrap();
        record.set_strings(strings(&resource)).unwrap();
        assert_eq!(record.strings(), strings(&resource));
        records.get_mut(1).unwrap().clear();
    }
    assert!(records.get_mut(2).is_none());
}

#[test]
fn a_user_stands_between_the_other_strings() {
    let mut records = Records::map(1).unwrap();
    let record = records.get_mut(0).unwrap();
    for (resource, user) in [("/e", "ann"), ("/e", "ann@id.example"), ("/long".repeat(9).as_str(), "é")] {
        let room = Strings {
            resource: resource.as_bytes(),
            origin: None,
            user: Some(user.as_bytes()),
            protocol: Some(b"chat.v2"),
        };
        record.set_strings(room).unwrap();
        assert_eq!(record.strings(), room);
        for protocol in [None, Some(&b"chat"[..]), Some(b"chat.v2")] {
            record.set_protocol(protocol);
            assert_eq!(record.strings(), Strings { protocol, ..room });
        }
    }
    let long = [b'a'; 256];
    assert!(record.set_strings(Strings { user: Some(&long), ..Strings::default() }).is_err());
    record.set_strings(Strings { user: Some(&long[1..]), ..Strings::default() }).unwrap();
    assert_eq!(record.strings().user.map(<[u8]>::len), Some(255));
}

#[test]
fn a_changed_byte_is_noticed_anywhere() {
    let mut records = Records::map(1).unwrap();
    let record = records.get_mut(0).unwrap();
    record.set_strings(strings(&"/x".repeat(100))).unwrap();
    record.set_state(b"counter 7");
    record.peer = Some("192.0.2.1:80".parse().unwrap()).into();
    record.seal();
    assert!(record.is_intact());
    record.fd ^= 1;
    assert!(!record.is_intact());
    record.fd ^= 1;
    record.state.get_mut().unwrap()[3] ^= 1;
    assert!(!record.is_intact());
    record.state.get_mut().unwrap()[3] ^= 1;
    record.spill.get_mut().unwrap()[50] ^= 1;
    assert!(!record.is_intact());
}

#[test]
fn what_is_known_of_an_arriving_connection_is_read_from_its_block() {
    let mut records = Records::map(1).unwrap();
    let record = records.get_mut(0).unwrap();
    for peer in [Some("192.0.2.1:80"), Some("[2001:db8::1]:443"), None] {
        record.peer = peer.map(|peer| peer.parse().unwrap()).into();
        record.mark = 17;
        record.seal();
        let expected = Arrival { peer: record.peer.address(), mark: 17, ..Arrival::default() };
        assert_eq!(Record::arrival_in(record.block(), &[]), Some(expected));
    }
    record.set_proxy_header();
    assert_eq!(Record::arrival_in(record.block(), &[]), None, "it is not sealed");
    record.seal();
    assert!(Record::arrival_in(record.block(), &[]).is_some_and(|arrival| arrival.has_proxy_header));
}

#[test]
fn facts_of_a_gateway_stay_with_the_record() {
    let facts =
        GatewayFacts { is_tls: true, alpn: Some(b"h2"), ..GatewayFacts::default() }.to_bytes().unwrap();
    for resource in ["/", &"/x".repeat(100)] {
        let mut records = Records::map(2).unwrap();
        let record = records.get_mut(0).unwrap();
        record.set_facts(&facts);
        record.seal();
        let spill = record.parts()[0].to_vec();
        let arrival = Record::arrival_in(record.block(), &spill).unwrap();
        assert_eq!(arrival.facts, Some(&facts[..]));
        assert_eq!(Record::arrival_in(record.block(), &spill[..9]).unwrap().facts, None);
        let offered = Strings { protocol: Some(&b"chat"[..]), ..strings(resource) };
        record.set_strings(offered).unwrap();
        record.set_protocol(Some(b"chat"));
        record.seal();
        assert!(record.is_intact());
        assert_eq!((record.strings(), record.facts()), (offered, Some(&facts[..])));
        let (block, spill) = (record.block().to_vec(), record.parts()[0].to_vec());
        let copy = records.get_mut(1).unwrap();
        assert!(copy.import(&block, [&spill, b"", b""]));
        assert_eq!((copy.strings(), copy.facts()), (offered, Some(&facts[..])));
        (0..2).for_each(|slot| records.get_mut(slot).unwrap().clear());
    }
}

#[test]
fn another_process_takes_over_what_is_intact_and_nothing_else() {
    let mut records = Records::map(2).unwrap();
    let long = "/x".repeat(100);
    let record = records.get_mut(0).unwrap();
    record.set_strings(strings(&long)).unwrap();
    record.set_state(b"counter 7");
    record.set_head(b"GET / HTTP/1.1");
    record.seal();
    let mut block = record.block().to_vec();
    let parts: Vec<Vec<u8>> = record.parts().iter().map(|part| part.to_vec()).collect();
    let parts = [&parts[0][..], &parts[1], &parts[2]];
    let copy = records.get_mut(1).unwrap();
    assert!(copy.import(&block, parts));
    assert_eq!((copy.strings(), copy.terminated_state()), (strings(&long), Some(&b"counter 7\0"[..])));
    records.get_mut(1).unwrap().clear();
    let copy = records.get_mut(1).unwrap();
    assert!(!copy.import(&block, [parts[0], b"counter 8\0", parts[2]]));
    block[60] ^= 4;
    assert!(!copy.import(&block, parts));
    assert!(copy.block().iter().all(|byte| *byte == 0), "what is damaged leaves no trace");
}

/// Of a record's own bytes, and of its parts.
type Change<'a> = dyn Fn(&mut Vec<u8>, &mut [Vec<u8>; 3]) + 'a;

#[test]
fn a_forged_record_with_the_right_checksums_cannot_reach_beyond_its_parts() {
    let mut records = Records::map(2).unwrap();
    let facts = GatewayFacts { is_tls: true, ..GatewayFacts::default() }.to_bytes().unwrap();
    let record = records.get_mut(0).unwrap();
    record.set_facts(&facts);
    record.set_strings(Strings { user: Some(b"ann"), protocol: Some(b"chat"), ..strings("/x") }).unwrap();
    record.set_state(b"counter 7");
    record.level = 6;
    record.seal();
    let (block, parts) = (record.block().to_vec(), record.parts().map(<[u8]>::to_vec));
    // With valid checksums, as an attacker would send them.
    let forged = |change: &Change<'_>| {
        let (mut block, mut parts) = (block.clone(), parts.clone());
        change(&mut block, &mut parts);
        let parts = parts.each_ref().map(|part| &part[..]);
        block[offset_of!(Record, parts)..][..4].copy_from_slice(&sum(&parts).to_ne_bytes());
        let checksum = sum(&[&block[COVERED..]]);
        block[offset_of!(Record, checksum)..][..4].copy_from_slice(&checksum.to_ne_bytes());
        let mut records = Records::map(1).unwrap();
        let copy = records.get_mut(0).unwrap();
        let is_taken = copy.import(&block, parts);
        // Whatever is taken can be read, and nothing of it is a pointer of the other process.
        let _ = (copy.strings(), copy.terminated_strings(), copy.terminated_state(), copy.facts());
        let is_clear = copy.block().iter().all(|byte| *byte == 0);
        assert!(is_taken || is_clear);
        records.get_mut(0).unwrap().clear();
        is_taken
    };
    assert!(forged(&|_, _| {}));
    for at in [offset_of!(Record, resource), offset_of!(Record, origin), offset_of!(Record, protocol)] {
        for size in [1_u16, 100, u16::MAX] {
            assert!(
                !forged(&|block, _| block[at..at + 2].copy_from_slice(&size.to_ne_bytes())),
                "{at}: {size}"
            );
        }
    }
    assert!(!forged(&|block, _| block[offset_of!(Record, user)] = 200));
    assert!(!forged(&|block, _| block[offset_of!(Record, level)] = 200));
    assert!(!forged(&|block, _| block[offset_of!(Record, attributes)] |= 0x80));
    assert!(!forged(&|_, parts| parts[0].truncate(9)), "facts cut off");
    assert!(!forged(&|_, parts| parts[0] = vec![255; 4]), "more facts than there are");
    assert!(!forged(&|_, parts| parts[0][8] ^= 1), "damaged facts");
    assert!(!forged(&|_, parts| *parts[1].last_mut().unwrap() = 1), "a state without its end");
    for bytes in 0..size_of::<Record>() {
        forged(&|block, _| block[bytes] = 0xff);
        assert!(!forged(&|block, _| block.truncate(bytes.max(COVERED + 4))), "{bytes} bytes");
    }
    records.get_mut(0).unwrap().clear();
}

#[test]
fn the_record_has_no_padding() {
    // The checksum reads every byte: 7 numbers of 4, 7 of 2, 2 of 1, the address, one of 4, one pointer, one number of
    // 8, twice owned bytes, and the inline strings.
    assert_eq!(size_of::<Record>(), 28 + 16 + 16 + 4 + 8 + 8 + 24 + INLINE);
}

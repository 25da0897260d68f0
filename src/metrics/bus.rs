//! What the bus has counted of the engine that joins topics with those of other machines.

use super::families::{counter, gauge};
use super::text::{Family, Text};
use crate::fleet::bus_counters::BusCounters;

const CONNECTED: Family = gauge("wshd_bus_connected", "", "Whether the bus is connected to its engine.");
const RECONNECTS: Family =
    counter("wshd_bus_reconnects", "", "Connections of the bus to its engine after the first.");
const SENT: Family = counter("wshd_bus_messages_sent", "", "Published messages that the engine has taken.");
const RECEIVED: Family =
    counter("wshd_bus_messages_received", "", "Messages of other machines that came in.");
const DROPPED: Family = counter(
    "wshd_bus_messages_dropped",
    "",
    "Messages that did not pass between bus and engine, by direction: no connection, refused, or too many.",
);

/// Writes it.
pub fn report(counters: &BusCounters, text: &mut Text) {
    let numbers = [
        (&CONNECTED, &counters.connected),
        (&RECONNECTS, &counters.reconnects),
        (&SENT, &counters.sent),
        (&RECEIVED, &counters.received),
    ];
    for (family, number) in numbers {
        text.family(family);
        text.sample(&[], number.get());
    }
    text.family(&DROPPED);
    for (direction, number) in [("out", &counters.dropped_out), ("in", &counters.dropped_in)] {
        text.sample(&[("direction", direction)], number.get());
    }
}

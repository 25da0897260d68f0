//! Metrics of the bus's connection to its engine.

use super::families::{counter, gauge};
use super::text::{Family, Text};
use crate::fleet::memory::counters::bus::BusCounters;

const CONNECTED: Family = gauge("wshd_bus_connected", "", "Whether the bus is connected to its engine.");
const RECONNECTS: Family =
    counter("wshd_bus_reconnects", "", "Connections of the bus to its engine after the first.");
const SENT: Family = counter("wshd_bus_messages_sent", "", "Published messages accepted by the engine.");
const RECEIVED: Family = counter("wshd_bus_messages_received", "", "Messages received from other machines.");
const DROPPED: Family = counter(
    "wshd_bus_messages_dropped",
    "",
    "Messages dropped between bus and engine, by direction: no connection, refused, or too many.",
);

/// Writes these families.
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

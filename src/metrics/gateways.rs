//! Metrics of gateways.

use super::families::{counter, gauge};
use super::text::{Family, Text};
use crate::fleet::memory::counters::gateway::GatewayCounters;

const HANDSHAKES: Family = counter("wshd_tls_handshakes", "", "Completed TLS handshakes.");
const FAILURES: Family = counter("wshd_tls_handshake_failures", "", "Failed TLS handshakes, by reason.");
const STREAMS: Family = counter("wshd_http2_streams", "", "HTTP/2 streams opened.");
const EXPIRY: Family = gauge(
    "wshd_certificate_expiry_timestamp_seconds",
    "seconds",
    "When the first certificate expires, since the Unix epoch.",
);

/// Writes these families.
pub fn report(counters: &GatewayCounters, text: &mut Text) {
    text.family(&HANDSHAKES);
    for (resumed, count) in [("no", &counters.full), ("yes", &counters.resumed)] {
        text.sample(&[("resumed", resumed)], count.get());
    }
    text.family(&FAILURES);
    for (failure, count) in counters.failures() {
        text.sample(&[("reason", failure.into())], count);
    }
    text.family(&STREAMS);
    text.sample(&[], counters.streams.get());
    let expiry = counters.expiry.get();
    if expiry != 0 {
        text.family(&EXPIRY);
        text.sample(&[], expiry);
    }
}

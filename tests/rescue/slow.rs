//! The slower tier: `cargo test --release --test rescue -- --ignored`.

//! Topics: subscriptions of connections, and messages for all that are subscribed, which come from the bus.

mod connected;
pub mod link;
pub mod subscriptions;
pub mod table;
pub mod topic;
pub mod travelling;

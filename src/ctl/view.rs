//! Answers for people.

use serde::Deserialize;
use serde_json::Value;

use super::answer::{Connections, Draining, Executes, Handler, Status};
use super::request::Request;
use super::table::{Table, bytes, time};
use super::topics::Topics;
use crate::log::Escaped;

/// A callback that has not come back after this time stands out; seconds.
const LONG: f64 = 1.0;

/// The text for an answer to this request. `bold`: what matters most may be set in bold.
pub fn of(request: &Request, result: &Value, bold: bool) -> Result<String, serde_json::Error> {
    Ok(match request {
        Request::Status {} => status(&Status::deserialize(result)?, bold),
        Request::Connections { .. } => connections(&Connections::deserialize(result)?, bold),
        Request::Topics {} => Topics::deserialize(result)?.text(bold),
        Request::Config {} => {
            let text = result.as_str().unwrap_or_default();
            text.lines().map(|line| format!("{}\n", Escaped(line))).collect()
        }
        Request::Quarantine { .. } => handlers(&Vec::<Handler>::deserialize(result)?, bold),
        _ => format!("{}\n", Escaped(result.as_str().unwrap_or("done"))),
    })
}

fn status(status: &Status, bold: bool) -> String {
    let running: usize = status.pools.iter().map(|pool| pool.running).sum();
    let connections: u64 = status.pools.iter().map(|pool| pool.connections).sum();
    let mut text = format!(
        "wshd {}, process {}, up {}, on {}\n{running} of {} workers running, {connections} connection{}\n\n",
        Escaped(&status.version),
        status.pid,
        time(status.uptime),
        Escaped(&status.listen.join(" and ")),
        status.workers.len(),
        if connections == 1 { "" } else { "s" }
    );
    if let Some(Draining { accepting, seconds }) = &status.draining {
        let accepts = if *accepting { "still accepting connections" } else { "closing connections" };
        text.truncate(text.len() - 1);
        text += &format!("DRAINING, {accepts}; stops in {} at the latest\n\n", time(*seconds));
    }
    let mut table = Table::new("WORKER PID> STATE CONNECTIONS> AGE> CPU> MEMORY> RECEIVED> SENT> EXECUTES");
    for worker in status.workers.iter().chain(&status.leaving) {
        let long = worker.executes.as_ref().is_some_and(|executes| executes.time >= LONG);
        let cells = [
            worker.name.clone(),
            worker.pid.to_string(),
            worker.state.clone(),
            worker.connections.to_string(),
            time(worker.age),
            time(worker.cpu),
            bytes(worker.memory),
            worker.totals.messages_in.to_string(),
            worker.totals.messages_out.to_string(),
            worker.executes.as_ref().map_or_else(|| "-".to_owned(), executes),
        ];
        table.row(cells, long);
    }
    text += &table.text(bold);
    if status.pools.len() > 1 {
        let mut table = Table::new("POOL WORKERS> RUNNING> CONNECTIONS>");
        for pool in &status.pools {
            let numbers = [pool.workers.to_string(), pool.running.to_string(), pool.connections.to_string()];
            let [workers, running, connections] = numbers;
            table.row([pool.name.clone(), workers, running, connections], pool.running < pool.workers);
        }
        text += "\n";
        text += &table.text(bold);
    }
    text += "\n";
    text + &handlers(&status.handlers, bold)
}

/// What a worker is in; two exclamation marks for what should have come back.
fn executes(executes: &Executes) -> String {
    let Executes { handler, resource, callback, connection, time: since } = executes;
    let connection = connection.as_ref().map_or_else(String::new, |id| format!(", connection {id}"));
    let mark = if *since >= LONG { " !!" } else { "" };
    format!("{callback} of {handler} ({resource}) for {}{connection}{mark}", time(*since))
}

fn handlers(handlers: &[Handler], bold: bool) -> String {
    let mut table = Table::new("HANDLER VERSION STYLE POOL CONNECTIONS> RECEIVED> SENT> STATE RESOURCES");
    for handler in handlers {
        let state = match &handler.quarantine {
            None => "served".to_owned(),
            Some(quarantine) => match (quarantine.probing, quarantine.seconds) {
                (true, _) => "quarantined, being probed".to_owned(),
                (false, Some(left)) => format!("quarantined for {}", time(left)),
                (false, None) => "quarantined until lifted".to_owned(),
            },
        };
        let version = if handler.version.is_empty() { "-" } else { &handler.version };
        let cells = [
            handler.name.clone(),
            version.to_owned(),
            handler.style.clone(),
            handler.pool.clone(),
            handler.connections.to_string(),
            handler.totals.messages_in.to_string(),
            handler.totals.messages_out.to_string(),
            state,
            handler.resources.join(" "),
        ];
        table.row(cells, handler.quarantine.is_some());
    }
    table.text(bold)
}

fn connections(list: &Connections<'_>, bold: bool) -> String {
    let mut table =
        Table::new("ID WORKER PEER STATE AGE> QUEUED> COMPRESSED USER SUBPROTOCOL HANDLER RESOURCE");
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    for connection in &list.connections {
        let cells = [
            connection.id.to_string(),
            connection.worker.to_string(),
            connection.peer.clone().unwrap_or_else(|| "unix".to_owned()),
            connection.phase.to_string(),
            time(connection.age),
            bytes(connection.queued),
            if connection.compressed { "yes" } else { "no" }.to_owned(),
            or_none(connection.user.as_deref()),
            or_none(connection.protocol.as_deref()),
            or_none(connection.handler.as_deref()),
            or_none(connection.resource.as_deref()),
        ];
        table.row(cells, false);
    }
    let mut text = table.text(bold);
    if list.left_out > 0 {
        text += &format!("{} more are not listed\n", list.left_out);
    }
    for silent in &list.silent {
        let why = silent.executes.as_ref().map_or_else(|| "it is busy".to_owned(), executes);
        let line = format!("not listed are those of {}, process {}: {why}", silent.worker, silent.pid);
        text += &format!("{}\n", Escaped(&line));
    }
    text
}

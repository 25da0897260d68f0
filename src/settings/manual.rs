//! The parts of wshd(8) and wshd.conf(5) that the table makes, in mdoc.

use super::{Default, Flag, Kind, Scope, Setting, in_scope, table};

/// The list of options of wshd(8).
pub fn options() -> String {
    let options = in_scope(Scope::Server).filter(|setting| setting.flag != Flag::No);
    options
        .map(|setting| format!("{}{}.\n{}", option_head(setting), setting.help, default(setting)))
        .collect()
}

fn option_head(setting: &Setting) -> String {
    let short = match setting.flag {
        Flag::Short(letter) => format!("{letter} , Fl "),
        Flag::Long | Flag::No => String::new(),
    };
    let value = match setting.kind {
        Kind::Flag(_) => String::new(),
        _ => format!(" Ar {}", setting.kind.value().to_lowercase()),
    };
    format!(".It Fl {short}-{}{value}\n", setting.option())
}

/// The keys of one table of the file, in wshd.conf(5).
pub fn keys(scope: Scope) -> String {
    let groups = table::GROUPS.iter().filter_map(|group| {
        let settings: Vec<_> = group.settings.iter().filter(|setting| setting.is_in(scope)).collect();
        if settings.is_empty() {
            return None;
        }
        let title = match scope {
            Scope::Server => format!(".Ss {}\n", group.title),
            _ => String::new(),
        };
        let items: String = settings.into_iter().map(|setting| key(setting, scope)).collect();
        Some((title, items))
    });
    match scope {
        Scope::Server => {
            groups.map(|(title, items)| format!("{title}.Bl -tag -width Ds\n{items}.El\n")).collect()
        }
        _ => {
            let items: String = groups.map(|(_, items)| items).collect();
            format!(".Bl -tag -width Ds\n{items}.El\n")
        }
    }
}

/// One key. What a table shares with the server is explained there.
fn key(setting: &Setting, scope: Scope) -> String {
    let Setting { name, help, more, .. } = setting;
    let plural = if matches!(setting.kind, Kind::List(..)) { "s" } else { "" };
    let head = format!(".It Cm {name} Ar {}{plural}\n{help}.\n", setting.kind.value().to_lowercase());
    let is_shared = setting.is_in(Scope::Server);
    let tables: &[(Scope, &str)] =
        &[(Scope::Handler, "handler"), (Scope::Pool, "pool"), (Scope::Listener, "listener")];
    let mut own = tables.iter().filter(|(table, _)| setting.is_in(*table)).map(|(_, name)| *name);
    match own.next_back() {
        Some(_) if is_shared && scope != Scope::Server => format!("{head}Default: as the server.\n"),
        Some(table) if is_shared => {
            let own = format!("A {table} can have its own.\n");
            format!("{head}{}{own}{}", lines(more), default(setting))
        }
        _ => format!("{head}{}{}", lines(more), default(setting)),
    }
}

fn lines(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text}\n") }
}

fn default(setting: &Setting) -> String {
    match setting.default {
        // After a list in the text.
        _ if setting.more.ends_with(".El") && setting.flag == Flag::No => match setting.default {
            Default::Is(value) | Default::Unset(value) => format!(".Pp\nThe default is {value}.\n"),
        },
        Default::Is(value) => format!("The default is {value}.\n"),
        Default::Unset(meaning) => format!("Default: {meaning}.\n"),
    }
}

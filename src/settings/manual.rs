//! Generates parts of wshd(8) and wshd.conf(5) from the table, in mdoc.

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
    let settings = in_scope(scope);
    if scope == Scope::Server {
        let groups = table::GROUPS.iter().map(|group| {
            let settings = group.settings.iter().filter(|setting| setting.is_in(scope));
            let items: String = settings.map(key).collect();
            (group.title, items)
        });
        let groups = groups.filter(|(_, items)| !items.is_empty());
        return groups
            .map(|(title, items)| format!(".Ss {title}\n.Bl -tag -width Ds\n{items}.El\n"))
            .collect();
    }
    let (shared, own): (Vec<_>, Vec<_>) = settings.partition(|setting| setting.is_in(Scope::Server));
    let names: Vec<_> = shared.iter().map(|setting| setting.name).collect();
    let own: String = own.into_iter().map(key).collect();
    format!(
        ".Pp\nThese keys of the server can be set here, too, and have its values by default:\n.Cm {} .\n\
         .Bl -tag -width Ds\n{own}.El\n",
        names.join(" ,\n.Cm ")
    )
}

/// One key.
fn key(setting: &Setting) -> String {
    let Setting { name, help, more, .. } = setting;
    let plural = if matches!(setting.kind, Kind::List(..)) { "s" } else { "" };
    let head = format!(".It Cm {name} Ar {}{plural}\n{help}.\n", setting.kind.value().to_lowercase());
    let tables = [(Scope::Handler, "handler"), (Scope::Pool, "pool"), (Scope::Listener, "listener")];
    let own = tables.iter().find(|(table, _)| setting.is_in(Scope::Server) && setting.is_in(*table));
    let own = own.map_or(String::new(), |(_, table)| format!("A {table} can have its own.\n"));
    format!("{head}{}{own}{}", lines(more), default(setting))
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

//! Values of variables, as a probe reads them.

use super::grammar::Family;
use super::side::unhex;
use super::snapshot::{UserValue, Value};
use crate::wire::mysql::reply::Column;

/// A session variable as its server wrote it.
pub(super) fn variable(family: Family, name: &str, value: Option<String>, kind: &str) -> Value {
    let number = match family {
        Family::MariaDb => kind.contains("INT") || kind == "DOUBLE",
        Family::MySql => value.as_deref().is_some_and(is_number),
    };
    // NULL is written as nothing; no character set has that name.
    let null = name.starts_with("character_set_");
    Value {
        text: value.filter(|v| !(null && v.is_empty())).map(Into::into),
        number,
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let all = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    all(whole) && all(part)
}

/// A user variable: its value, the same in digits, its character set, its collation.
pub(super) fn user_value((kind, flags): (u8, u16), row: &[Option<&[u8]>]) -> Option<UserValue> {
    let text = |at: usize| match row.get(at) {
        Some(Some(value)) => std::str::from_utf8(value).ok(),
        _ => None,
    };
    if row.first()?.is_none() {
        return Some(UserValue::Null);
    }
    Some(match kind {
        Column::LONGLONG if flags & Column::UNSIGNED != 0 => {
            UserValue::Unsigned(text(0)?.parse().ok()?)
        }
        Column::LONGLONG => UserValue::Int(text(0)?.parse().ok()?),
        Column::NEWDECIMAL => UserValue::Decimal(text(0)?.into()),
        Column::DOUBLE => UserValue::Double(text(0)?.into()),
        // Other numbers and dates are none that a user variable has.
        0..=4 | 7 | 9..=14 | 16 => return None,
        _ => UserValue::Text(unhex(text(1)?)?.into(), text(2)?.into(), text(3)?.into()),
    })
}

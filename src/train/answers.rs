//! Whether the answer of a model is the right one.

/// An answer without the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A number, in its shortest decimal form.
    Number(String),
    /// What stands in a box, normalized.
    Boxed(String),
    /// Any other text, with single spaces.
    Text(String),
}

impl Answer {
    /// Reads the right answer of a record: as in MATH, what stands in the last `\boxed{...}`, if there is one; else, as in
    /// GSM8K, the number after `####`, or the last number of the text; a text without any number as a whole.
    ///
    /// # Example
    ///
    /// ```
    /// use scalebio::train::Answer;
    ///
    /// let answer = Answer::of("He has 3 * 400 = 1,200 left.\n#### 1,200");
    /// assert_eq!(answer, Answer::Number("1200".to_owned()));
    /// assert!(answer.is_given_by("So it is 1200.0 in all."));
    /// assert!(!answer.is_given_by("It is 1200 or 1300."));
    /// ```
    pub fn of(text: &str) -> Self {
        if let Some(content) = boxed(text) {
            return Self::Boxed(normalized(content));
        }
        match number(text) {
            Some(number) => Self::Number(number),
            None => Self::Text(spaced(text)),
        }
    }

    /// Whether `text`, the words of a model, gives this answer. Where the answer is a number, it is sought in the last box of
    /// the text, else as in [`of`](Self::of); where it stands in a box, in the last box; any other answer must be all that is
    /// said.
    pub fn is_given_by(&self, text: &str) -> bool {
        self.found_in(text).is_some_and(|found| found == *self)
    }

    /// The answer that `text` gives, of the same kind as this one.
    pub(super) fn found_in(&self, text: &str) -> Option<Self> {
        match self {
            Self::Number(_) => {
                let content = boxed(text).map(normalized);
                number(content.as_deref().unwrap_or(text)).map(Self::Number)
            }
            Self::Boxed(_) => boxed(text).map(normalized).map(Self::Boxed),
            Self::Text(_) => Some(Self::Text(spaced(text))),
        }
    }
}

fn spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The last number on the line of the last `####`; without that mark, the last number of the text.
fn number(text: &str) -> Option<String> {
    let text = match text.rsplit_once("####") {
        Some((_, after)) => after.trim_start().lines().next().unwrap_or_default(),
        None => text,
    };
    let (mut last, mut from) = (None, 0);
    while let Some(found) = text[from..].find(|c: char| c.is_ascii_digit()) {
        let start = from + found;
        // A sign, and the point of `.5`, are part of a number unless they follow a word or another number.
        let follows = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == ')');
        let point = text[..start].strip_suffix('.');
        let fraction = point.is_some_and(|before| !follows(before));
        let before = point.filter(|_| fraction).unwrap_or(&text[..start]);
        let before = before.strip_suffix('$').unwrap_or(before);
        let sign = before.strip_suffix(['-', '\u{2212}']);
        let negative = sign.is_some_and(|before| !follows(before.trim_end()));
        let digits = &text[start..];
        let end = digits
            .find(|c: char| !(c.is_ascii_digit() || c == ',' || (c == '.' && !fraction)))
            .unwrap_or(digits.len());
        let (whole, decimals) = split(&digits[..end], fraction);
        last = Some(shortest(negative, &whole, &decimals));
        from = start + end;
    }
    last
}

/// Whole part and decimals of digits with commas and points; of `1.2.3` only `1.2`, as a list of numbers is none.
fn split(digits: &str, fraction: bool) -> (String, String) {
    let digits = digits.replace(',', "");
    if fraction {
        return (String::new(), digits);
    }
    let mut parts = digits.split('.');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    (part(), part())
}

fn shortest(negative: bool, whole: &str, decimals: &str) -> String {
    let whole = whole.trim_start_matches('0');
    let decimals = decimals.trim_end_matches('0');
    let mut text = if whole.is_empty() { "0" } else { whole }.to_owned();
    if !decimals.is_empty() {
        text = format!("{text}.{decimals}");
    }
    if negative && text != "0" {
        text.insert(0, '-');
    }
    text
}

/// What stands in the last `\boxed{...}` or `\fbox{...}`, whose braces must close, or after a `\boxed ` up to a `$`.
fn boxed(text: &str) -> Option<&str> {
    let last = |mark: &str| text.rfind(mark).map(|at| (at, at + mark.len()));
    let (_, start) = [last("\\boxed"), last("\\fbox")]
        .into_iter()
        .flatten()
        .max()?;
    let inside = &text[start..];
    let Some(content) = inside.trim_start().strip_prefix('{') else {
        let content = inside.split(['$', '\n']).next()?.trim();
        return (!content.is_empty() && inside.starts_with(' ')).then_some(content);
    };
    let mut depth = 1_usize;
    let mut escaped = false;
    for (at, c) in content.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' if depth == 1 => return Some(&content[..at]),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What is left out of a formula: spacing, the size of brackets, units of money, percent and angle.
const IGNORED: [&str; 13] = [
    "\\!",
    "\\,",
    "\\;",
    "\\:",
    "\\ ",
    "\\left",
    "\\right",
    "\\$",
    "$",
    "\\%",
    "%",
    "^{\\circ}",
    "^\\circ",
];

/// A formula with one spelling for what is written in several, a part of what the MATH data set's own check does: no
/// spacing, `\frac` for `\dfrac` and `\tfrac`, `\frac{1}{2}` for `\frac12` and `1/2`, the content of `\text{...}`, no point
/// at the end, and numbers without commas and idle zeros.
fn normalized(formula: &str) -> String {
    let mut text = formula.to_owned();
    for ignored in IGNORED {
        text = text.replace(ignored, "");
    }
    text = text
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac");
    for wrapper in ["\\text", "\\mathrm", "\\textbf", "\\mbox"] {
        text = unwrapped(&text, wrapper);
    }
    text.retain(|c| !c.is_whitespace());
    let text = text.strip_suffix('.').unwrap_or(&text);
    let text = braced_fractions(text);
    if let Some((above, below)) = text.split_once('/')
        && is_whole(above.strip_prefix('-').unwrap_or(above))
        && is_whole(below)
    {
        let (sign, above) = match above.strip_prefix('-') {
            Some(above) => ("-", above),
            None => ("", above),
        };
        return format!("{sign}\\frac{{{above}}}{{{below}}}");
    }
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, ',' | '.' | '-');
    let grouped = text.split(',').skip(1).all(|group| {
        let group = group.split('.').next().unwrap_or_default();
        group.len() == 3
    });
    if grouped && text.contains(|c: char| c.is_ascii_digit()) && text.chars().all(is_number) {
        return number(&text).unwrap_or(text);
    }
    text
}

fn is_whole(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `content` for `wrapper{content}`.
fn unwrapped(text: &str, wrapper: &str) -> String {
    let start = format!("{wrapper}{{");
    let mut text = text.to_owned();
    while let Some(at) = text.find(&start) {
        let inside = at + start.len();
        let Some(end) = text[inside..].find('}') else {
            break;
        };
        let content = text[inside..inside + end].trim().to_owned();
        text.replace_range(at..=inside + end, &content);
    }
    text
}

/// `\frac{1}{2}` for `\frac12`.
fn braced_fractions(text: &str) -> String {
    let mut pieces = text.split("\\frac");
    let mut result = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        result.push_str("\\frac");
        let mut chars = piece.chars();
        match (chars.next(), chars.next()) {
            (Some(above), Some(below)) if above.is_ascii_digit() && below.is_ascii_digit() => {
                result.push_str(&format!("{{{above}}}{{{below}}}"));
                result.push_str(chars.as_str());
            }
            _ => result.push_str(piece),
        }
    }
    result
}

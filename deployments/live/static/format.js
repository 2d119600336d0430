// Numbers as people read them: three digits that mean something, and a unit.

const MISSING = "–";

function threeDigits(value) {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** 0.0421 -> "42.1 ms". */
export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return MISSING;
  if (value === 0) return "0 ms";
  if (value < 0.9995) return `${threeDigits(value * 1e3)} ms`;
  return value < 600 ? `${threeDigits(value)} s` : `${Math.round(value / 60)} min`;
}

/** 1234.5 -> "1,235"; 3.21 -> "3.2"; 3 -> "3". */
export function rate(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return MISSING;
  return value < 10 ? String(Number(value.toFixed(1))) : Math.round(value).toLocaleString("en");
}

/** 12345 -> "12,345". */
export const count = (value) => (value === null || value === undefined ? MISSING : Math.round(value).toLocaleString("en"));

/** 0.123 -> "12 %"; 0.0123 -> "1.2 %". */
export const percent = (share) => `${rate(100 * share)} %`;

/** One word in two numbers: 1 -> "1 group", 2 -> "2 groups". */
export const several = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** 75 -> "1:15 min ago". */
export function ago(value) {
  if (value < 1) return "now";
  return value < 60 ? `${value} s ago` : `${Math.floor(value / 60)}:${String(value % 60).padStart(2, "0")} min ago`;
}

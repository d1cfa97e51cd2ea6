/**
 * Kimi's encoder cuts very long texts before anything else, because its regular expression engine could not take them. The
 * cuts can change the tokens at their edges, so whoever wants the same ids must cut in the same places.
 */
import { CharacterClass, classAt } from './character-classes.ts';

/** Code points after which a text is cut. */
const longestText = 400_000;
/** Longest run of white space, or of anything else, in code points. */
const longestRun = 25_000;
/** The parts into which the official encoder cuts `text`; nearly always the text itself. */
export function cutLongText(text: string): string[] {
  if (text.length <= longestRun) return [text];
  const parts: string[] = [];
  let [start, count, run, runIsSpace] = [0, 0, 0, false];
  for (let at = 0; at < text.length; ) {
    const point = text.codePointAt(at)!;
    // As Python's str.isspace: White_Space and the four separator controls.
    const isSpace = (classAt(text, at) & CharacterClass.space) !== 0 || (point >= 0x1c && point <= 0x1f);
    run = isSpace === runIsSpace ? run + 1 : 1;
    runIsSpace = isSpace;
    if (count === longestText || run > longestRun) {
      parts.push(text.slice(start, at));
      start = at;
      run = 1;
      if (count === longestText) count = 0;
    }
    count++;
    at += point > 0xffff ? 2 : 1;
  }
  parts.push(text.slice(start));
  return parts;
}

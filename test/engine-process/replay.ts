/** A model that knows its answers: which reply follows is told by token runs in the prompt. */
export interface Reply {
  /** The reply is given when this run of tokens occurs in the prompt; the first match wins. Empty: always. */
  readonly when: readonly number[];
  /** A prompt ends, and an answer begins, after the last of these. */
  readonly after: number;
  /** The answer; after its end its last token repeats for ever. */
  readonly say: readonly number[];
}

export function replay(replies: readonly Reply[]): (history: readonly number[]) => number {
  return (history) => {
    for (const { when, after, say } of replies) {
      const promptEnd = history.lastIndexOf(after) + 1;
      if (contains(history.slice(0, promptEnd), when)) {
        return say[Math.min(history.length - promptEnd, say.length - 1)] as number;
      }
    }
    throw new Error('no reply for this prompt');
  };
}

function contains(history: readonly number[], run: readonly number[]): boolean {
  for (let start = 0; start + run.length <= history.length; start++) {
    if (run.every((token, i) => history[start + i] === token)) return true;
  }
  return false;
}

/** Constraints over the small vocabulary in the checkout, and texts walked through them. */
import { fileURLToPath } from 'node:url';
import { createConstraints } from '../../src/constrain/constraints.ts';
import { allows } from '../../src/constrain/masks.ts';
import type { ConstraintRun, ConstraintSpec, Constraints, TokenMask } from '../../src/constrain/types.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';

export const vocabularyPath = fileURLToPath(new URL('../fixtures/moonlight', import.meta.url));
export const tokenizer = await openTokenizer(vocabularyPath);

export const answering = (schema: unknown, strict = true): ConstraintSpec => ({
  answer: { schema, strict },
  calls: null,
  reasoningOpen: false,
});

/** A run and a way to wait for its next mask. */
export interface Walk {
  readonly run: ConstraintRun;
  mask(): Promise<TokenMask>;
  close(): void;
}

export async function begin(constraints: Constraints, spec: ConstraintSpec): Promise<Walk> {
  let wake = () => {};
  const run = await constraints.open(spec, () => wake());
  return {
    run,
    async mask() {
      while (run.mask === undefined && run.failure === null) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      if (run.failure !== null) throw run.failure;
      return run.mask as TokenMask;
    },
    close: () => run.close(),
  };
}

export function startConstraints(): Constraints {
  return createConstraints({ tokenizer: vocabularyPath });
}

/** Whether `text`, control tokens by name, is possible; `ended`: and whether the turn may end behind it. */
export async function possible(constraints: Constraints, spec: ConstraintSpec, text: string) {
  const walk = await begin(constraints, spec);
  try {
    for (const token of tokenizer.encode(text, { specials: true })) {
      const mask = await walk.mask();
      if (mask !== null && !allows(mask, token)) return { possible: false, ended: false };
      walk.run.accept(token);
    }
    const mask = await walk.mask();
    return { possible: true, ended: mask === null || tokenizer.stopTokens.every((id) => allows(mask, id)) };
  } finally {
    walk.close();
  }
}

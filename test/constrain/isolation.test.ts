import { describe, expect, it } from 'vitest';
import { createConstraints } from '../../src/constrain/constraints.ts';
import { allows } from '../../src/constrain/masks.ts';
import { slow } from './schemas.ts';
import { answering, begin, tokenizer, vocabularyPath } from './support.ts';

describe('a schema that takes too long', () => {
  it('is refused, and answers under way go on as if nothing had been', async () => {
    const constraints = createConstraints({ tokenizer: vocabularyPath, answerMilliseconds: 1500 });
    try {
      const walk = await begin(constraints, answering({ type: 'object' }));
      const [first, ...rest] = tokenizer.encode('{"a": 1}');
      await walk.mask();
      walk.run.accept(first!);
      await walk.mask();
      await expect(begin(constraints, answering(slow))).rejects.toMatchObject({
        code: 'SCHEMA_TOO_COSTLY',
        status: 400,
      });
      for (const token of rest) {
        const mask = await walk.mask();
        expect(mask !== null && allows(mask, token)).toBe(true);
        walk.run.accept(token);
      }
      const last = await walk.mask();
      expect(last !== null && allows(last, tokenizer.stopTokens[0]!)).toBe(true);
      walk.close();
    } finally {
      await constraints.close();
    }
  });

  it('leaves those waiting behind it their turn', async () => {
    const constraints = createConstraints({ tokenizer: vocabularyPath, answerMilliseconds: 1500 });
    try {
      const refusals = Promise.allSettled([begin(constraints, answering(slow)), begin(constraints, answering(slow))]);
      const walk = await begin(constraints, answering({ type: 'null' }));
      expect((await refusals).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
      walk.close();
    } finally {
      await constraints.close();
    }
  });
});

describe('closing', () => {
  it('fails what is under way', async () => {
    const constraints = createConstraints({ tokenizer: vocabularyPath });
    const opening = expect(begin(constraints, answering({}))).rejects.toMatchObject({ code: 'ENGINE_CLOSED' });
    await constraints.close();
    await opening;
    await expect(begin(constraints, answering({}))).rejects.toMatchObject({ code: 'ENGINE_CLOSED' });
  });
});

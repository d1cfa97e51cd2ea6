/** What the MODEL argument names. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { perigeeError } from '../errors.ts';
import { nanoFile } from '../runtime/assets.ts';

export const modelHelp = 'a GGUF file, the first part of a split one, or a folder holding either (default: Nano)';

/** The path of the model: `argument`, or Nano. A Hugging Face checkpoint is refused with the command that converts it. */
export function modelPath(argument: string | undefined): string {
  if (argument === undefined) return nanoFile;
  if (isCheckpoint(argument))
    throw perigeeError('CHECKPOINT_NOT_CONVERTED', { folder: argument, file: `${argument.replace(/\/+$/, '')}.gguf` });
  return argument;
}

function isCheckpoint(path: string): boolean {
  const has = (name: string) => existsSync(join(path, name));
  return has('config.json') && (has('model.safetensors') || has('model.safetensors.index.json'));
}

/** Splits "[MODEL] TEXT...": the first word is a model when it ends in .gguf or something of that name exists. */
export function splitModelAndText(words: readonly string[]): { model: string | undefined; text: string } {
  const [first, ...rest] = words;
  if (first !== undefined && rest.length > 0 && (first.endsWith('.gguf') || existsSync(first)))
    return { model: first, text: rest.join(' ') };
  return { model: undefined, text: words.join(' ') };
}

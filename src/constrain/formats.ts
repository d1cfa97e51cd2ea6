/** Formats that are enforced, each by a pattern whose strings are all valid; others are annotations, as the standard has it. */

const month = '(0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8])';
const time = '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)';
const date = `\\d{4}-(${month})`;
const octet = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)';

export const formats: ReadonlyMap<string, string> = new Map([
  ['date', `^${date}$`],
  ['time', `^${time}$`],
  ['date-time', `^${date}T${time}$`],
  ['uuid', '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'],
  ['ipv4', `^${octet}(\\.${octet}){3}$`],
  ['email', '^[A-Za-z0-9_-]{1,32}(\\.[A-Za-z0-9_-]{1,32}){0,3}@[A-Za-z0-9]{1,32}(\\.[A-Za-z0-9]{1,32}){1,3}$'],
]);
